"""Where masks lie: from the target of a perfect mask back to the pixels of the cell."""

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from cellseg.config import TrialConfig
from cellseg.data.rle import decode
from cellseg.data.targets import make_target, roi_mask_targets, sampling_points
from cellseg.inference.image import predict_image
from cellseg.inference.paste import paste_masks, paste_probabilities
from cellseg.model.build import build_model

SIDE = 64


def disc(radius: float, x: float, y: float) -> np.ndarray:
    rows_HW, columns_HW = np.mgrid[:SIDE, :SIDE] + 0.5
    return (columns_HW - x) ** 2 + (rows_HW - y) ** 2 <= radius**2


def perfect_mask_iou(cell_HW: np.ndarray, alignment: str, factor: int = 1) -> float:
    """IoU of a cell with the mask that a network without error predicts for it, seeing it ``factor`` times as large."""
    shown_HW = cell_HW.repeat(factor, axis=0).repeat(factor, axis=1)
    target = make_target(shown_HW[None].astype(np.uint16), np.array([1]))
    cell = target["planes"], target["plane"], target["number"]
    matched = torch.tensor([0])
    mask_1MM = roi_mask_targets(*cell, target["boxes"], matched, 28, aligned=alignment == "aligned")
    boxes_N4, shift = target["boxes"].numpy() / factor, (0.5 / factor, 0.5 / factor)
    (rle,) = paste_masks(mask_1MM.numpy(), boxes_N4, SIDE, SIDE, 0.5, alignment, shift)
    pasted_HW = decode(rle)
    return (pasted_HW & cell_HW).sum() / (pasted_HW | cell_HW).sum()


@pytest.mark.parametrize(
    ("alignment", "least", "most"), [("torchvision", 0.91, 0.94), ("shifted", 0.99, 1.0), ("aligned", 0.9999, 1.0)]
)
def test_perfect_masks_of_small_discs(alignment, least, most):
    rng = np.random.default_rng(0)
    discs = [disc(rng.uniform(6, 14), *rng.uniform(24, 40, 2)) for _ in range(60)]
    assert least <= np.mean([perfect_mask_iou(cell_HW, alignment) for cell_HW in discs]) <= most


@pytest.mark.parametrize(("alignment", "least"), [("shifted", 0.99), ("aligned", 0.999)])
def test_perfect_masks_of_a_network_that_sees_them_larger(alignment, least):
    rng = np.random.default_rng(0)
    discs = [disc(rng.uniform(6, 14), *rng.uniform(24, 40, 2)) for _ in range(20)]
    assert np.mean([perfect_mask_iou(cell_HW, alignment, factor=3) for cell_HW in discs]) >= least


@pytest.mark.parametrize("roi", [(10.3, 12.7, 30.1, 25.2), (-3.5, 40.2, 20.0, 70.9), (5.0, 5.0, 60.5, 61.0)])
def test_aligned_targets_are_those_of_roi_align(roi):
    cell_HW = disc(17.0, 25.0, 30.0)
    target = make_target(cell_HW[None].astype(np.uint16), np.array([1]))
    rois = torch.tensor([roi])
    mask = torch.from_numpy(cell_HW[None, None].astype(np.float32))
    expected = roi_align(mask, [rois], 28, sampling_ratio=-1, aligned=True)[:, 0]
    for points in (None, sampling_points(rois, 28).numpy()):
        cell = target["planes"], target["plane"], target["number"]
        found = roi_mask_targets(*cell, rois, torch.tensor([0]), 28, points, aligned=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_aligned_mask_lies_in_its_box_and_fades_to_a_half_at_its_edge():
    boxes_N4 = np.array([[10.25, 20.0, 14.25, 22.0], [-4.0, 5.0, 4.0, 7.5], [30.2, 30.3, 30.4, 30.5]], np.float32)
    masks = list(paste_probabilities(np.ones((3, 28, 28), np.float32), boxes_N4, "aligned"))
    assert [(mask_hw.shape, top, left) for mask_hw, top, left in masks] == [
        ((2, 5), 20, 10),
        ((3, 8), 5, -4),
        ((1, 1), 30, 30),
    ]
    assert masks[0][0].dtype == np.float32
    np.testing.assert_allclose(masks[0][0][:, 1:4], 1)
    rles = paste_masks(np.ones((3, 28, 28), np.float32), boxes_N4, 40, 40, 0.5, "aligned")
    assert [int(decode(rle).sum()) for rle in rles] == [2 * 4, 3 * 4, 0]  # whole pixels whose centre is in the box
    coarse = next(paste_probabilities(np.ones((1, 2, 2), np.float32), np.array([[0, 0, 8, 8]], np.float32), "aligned"))
    np.testing.assert_allclose(coarse[0][3], [0.625, 0.875, 1, 1, 1, 1, 0.875, 0.625])
    assert list(paste_probabilities(np.ones((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), "aligned")) == []


@pytest.mark.parametrize("head", ["plain", "pointrend"])
def test_prediction_pastes_as_the_model_was_trained(tiny_config, head):
    config = tiny_config(
        inference__score_threshold=0.0,
        inference__mask_threshold=0.3,
        inference__mask_pasting="model",
        model__mask_head=head,
    )
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, 2).eval()
    image_HWC = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    as_torchvision, aligned = (
        predict_image(model, image_HWC, config.replace(model__mask_alignment=value))
        for value in ("torchvision", "aligned")
    )
    np.testing.assert_array_equal(as_torchvision.boxes_N4, aligned.boxes_N4)
    assert as_torchvision.rles != aligned.rles


def test_a_config_that_does_not_say_has_torchvisions_masks():
    flat = TrialConfig().to_flat()
    del flat["model.mask_alignment"]  # as in the checkpoints of earlier versions
    assert TrialConfig.from_flat(flat).model.mask_alignment == "torchvision"


def test_trials_of_earlier_versions_predict_as_they_did():
    flat = TrialConfig().to_flat()
    assert flat["inference.mask_pasting"] == "exact"
    assert TrialConfig.from_stored(flat, "trial").to_flat() == flat
    del flat["inference.mask_pasting"]
    assert TrialConfig.from_stored(flat, "trial").inference.mask_pasting == "model"
