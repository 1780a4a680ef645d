import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cellseg.data.rle import decode
from cellseg.data.targets import make_target, roi_mask_targets
from cellseg.inference.paste import paste_masks
from cellseg.model import pointrend
from cellseg.model.build import build_model
from cellseg.model.pointrend import (
    PointHead,
    in_image,
    point_loss,
    refine_masks,
    sample_features,
    sample_maps,
    sample_places,
)

SIDE = 64
"""Height and width of the images here, px."""


def coordinate_features(side: int = SIDE) -> torch.Tensor:
    """(1, 2, side / 4, side / 4) features of an image: x and y of their own centres in px."""
    centres = 4 * (torch.arange(side // 4) + 0.5)
    return torch.stack(torch.meshgrid(centres, centres, indexing="xy"))[None]


class Oracle(nn.Module):
    """A point head that knows where the cell is: ``logit(x, y)`` for the points whose features are coordinates."""

    def __init__(self, logit, samples: int, doublings: int, num_outputs: int = 3):
        super().__init__()
        self.logit, self.samples, self.doublings, self.num_outputs = logit, samples, doublings, num_outputs

    def forward(self, fine_RFS, coarse_RCS):
        assert fine_RFS.shape[1:] == (2, coarse_RCS.shape[2])
        assert coarse_RCS.shape[:2] == (len(fine_RFS), self.num_outputs)
        x_RS, y_RS = fine_RFS.unbind(dim=1)
        logits_RS = self.logit(x_RS, y_RS)
        # Other classes say the opposite, so that the wrong one would show.
        return torch.stack([-logits_RS, -logits_RS, logits_RS], dim=1)


def circle(x, y):
    """Logits of a cell of radius 13 px around (31.3, 33.7)."""
    return 20 * (13 - torch.hypot(x - 31.3, y - 33.7))


BOXES = torch.tensor([[18.3, 20.7, 44.3, 46.7], [14.0, 17.5, 48.6, 47.0]])
"""The circle's own box, and one around it that does not fit."""


def truth_in(boxes_R4: torch.Tensor, side: int) -> torch.Tensor:
    """(R, side, side) bool: the circle at the centres of a grid over each box."""
    centres = (torch.arange(side) + 0.5) / side
    places_X2 = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=2).reshape(1, -1, 2)
    x_RX, y_RX = in_image(places_X2.expand(len(boxes_R4), -1, -1), boxes_R4).unbind(dim=2)
    return (circle(x_RX, y_RX) > 0).reshape(-1, side, side)


def coarse_logits(boxes_R4: torch.Tensor) -> torch.Tensor:
    """(R, 3, 28, 28): for class 2 the circle, blurred and a little too large, for the others nothing."""
    blurred = F.avg_pool2d(truth_in(boxes_R4, 28).float()[:, None], 5, stride=1, padding=2, count_include_pad=False)
    logits_RCMM = torch.full((len(boxes_R4), 3, 28, 28), -9.0)
    logits_RCMM[:, 2] = 8 * (blurred[:, 0] - 0.3)
    return logits_RCMM


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1)


def test_an_oracle_sharpens_a_coarse_mask_to_near_perfection():
    coarse = coarse_logits(BOXES)
    (masks,) = refine_masks(Oracle(circle, 2000, 2), coordinate_features(), coarse, [BOXES], [torch.tensor([2, 2])])
    assert masks.shape == (2, 1, 112, 112)
    truth = truth_in(BOXES, 112)
    upsampled = F.interpolate(coarse[:, 2:], (112, 112), mode="bilinear")[:, 0] > 0
    assert (iou(upsampled, truth) < 0.92).all()
    assert (iou(masks[:, 0] > 0.5, truth) > 0.995).all()


def test_a_sharpened_mask_lies_where_the_cell_is_in_the_image():
    boxes = BOXES[1:]
    (masks,) = refine_masks(
        Oracle(circle, 1000, 2), coordinate_features(), coarse_logits(boxes), [boxes], [torch.tensor([2])]
    )
    (rle,) = paste_masks(masks[:, 0].numpy(), boxes.numpy(), SIDE, SIDE, 0.5)
    rows, columns = np.nonzero(decode(rle))
    # Pasting takes boxes to whole pixels, as torchvision's does.
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((31.3, 33.7), abs=0.6)
    assert len(rows) == pytest.approx(np.pi * 13**2, rel=0.1)


@pytest.mark.parametrize(("doublings", "side"), [(1, 56), (2, 112), (3, 224)])
def test_a_mask_is_doubled_and_refined_at_its_most_uncertain_points_only(doublings, side):
    coarse = coarse_logits(BOXES)
    oracle = Oracle(lambda x, y: torch.full_like(x, 50), samples=7, doublings=doublings)
    (masks,) = refine_masks(oracle, coordinate_features(), coarse, [BOXES], [torch.tensor([2, 2])])
    assert masks.shape == (2, 1, side, side)
    if doublings == 1:
        plain = F.interpolate(coarse[:, 2:], scale_factor=2, mode="bilinear")[:, 0].flatten(1)
        changed = masks.flatten(1) != plain.sigmoid()
        assert changed.sum(1).tolist() == [7, 7]
        for row in range(2):
            assert plain[row].abs()[changed[row]].max() <= plain[row].abs()[~changed[row]].min()


def test_masks_smaller_than_the_number_of_points_are_replaced_as_a_whole():
    oracle = Oracle(circle, samples=100_000, doublings=1)
    nothing = torch.full((2, 3, 28, 28), -9.0)
    (masks,) = refine_masks(oracle, coordinate_features(), nothing, [BOXES], [torch.tensor([2, 2])])
    assert torch.equal(masks[:, 0] > 0.5, truth_in(BOXES, 56))


def test_each_image_is_refined_with_its_own_features_and_in_any_chunks(monkeypatch):
    torch.manual_seed(0)
    head = PointHead(2, 8, 3, samples=50, doublings=2)
    nn.init.normal_(head.predictor.weight)
    features = torch.cat([coordinate_features(), coordinate_features().flip(1)]) / SIDE
    coarse, labels = torch.randn(3, 3, 28, 28), torch.tensor([1, 2, 1])
    boxes = [BOXES, BOXES[:0], BOXES[:1]]
    features = torch.cat([features[:1], torch.zeros(1, 2, 16, 16), features[1:]])
    together = refine_masks(head, features, coarse, boxes, [labels[:2], labels[:0], labels[2:]])
    assert [len(masks) for masks in together] == [2, 0, 1]
    monkeypatch.setattr(pointrend, "POINTS_AT_ONCE", 1)
    alone = [
        refine_masks(head, features[i : i + 1], coarse[s], [boxes[i]], [labels[s]])[0]
        for i, s in ((0, slice(0, 2)), (2, slice(2, 3)))
    ]
    torch.testing.assert_close(torch.cat(together), torch.cat(alone))


def half_plane(edge: int) -> dict[str, torch.Tensor]:
    """The target of one cell of class 2 that covers x < ``edge``."""
    planes_PHW = np.zeros((1, SIDE, SIDE), np.uint16)
    planes_PHW[0, :, :edge] = 1
    return make_target(planes_PHW, np.array([2]))


@pytest.mark.parametrize(("shift", "wrong"), [(0.0, False), (-0.5, True), (0.5, True)])
def test_in_training_features_and_truth_are_read_at_the_same_points(shift, wrong):
    """Coordinates sampled from the features decide about the cell as its pixels do, or half a pixel beside them."""
    torch.manual_seed(0)
    edge, boxes = 31, torch.tensor([[25.2, 20.1, 37.9, 41.5], [28.3, 30.0, 33.2, 36.7]])
    oracle = Oracle(lambda x, y: 1e4 * (edge + shift - x), samples=500, doublings=1)
    matched = torch.zeros(2, dtype=torch.int64)
    target = half_plane(edge)
    truth = roi_mask_targets(target["planes"], target["plane"], target["number"], boxes, matched, 28)
    coarse = 8 * (truth[:, None].expand(-1, 3, -1, -1) - 0.5)
    loss = point_loss(oracle, coordinate_features(), coarse, torch.tensor([2, 2]), [boxes], [matched], [target])
    assert (loss > 10) == wrong


def test_training_points_are_mostly_uncertain_ones():
    torch.manual_seed(0)
    logits_RMM = torch.linspace(-5, 5, 28).expand(3, 28, 28)  # uncertain around x = 0.5
    places = sample_places(logits_RMM, 400)
    assert places.shape == (3, 400, 2)
    assert 0 <= places.min() < 0.05 and 0.95 < places.max() <= 1
    distance = (places[:, :, 0] - 0.5).abs()
    # The best 300 of 1200 candidates lie in the middle quarter; the others are spread evenly.
    assert (distance[:, :300] < 0.15).all()
    assert 0.2 < distance[:, 300:].mean() < 0.3
    assert not torch.equal(places[0], places[1])


def test_the_global_seed_decides_the_training_points():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(sample_places(torch.zeros(2, 28, 28), 5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_maps_are_read_at_centres_as_they_are_and_beyond_them_as_at_the_edge():
    maps = torch.tensor([[[[1.0, 2], [3, 4]]]])
    places = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.25], [0.5, 0.5], [0, 0], [1, 0.5]]])
    assert sample_maps(maps, places)[0, 0].tolist() == [1, 2, 3, 1.5, 2.5, 1, 3]


def test_features_are_read_at_pixels_of_a_map_that_is_not_square():
    features = torch.cat([coordinate_features(64)[0], coordinate_features(64)[0]])[:, :, :8]  # 64 high, 32 wide
    points = torch.tensor([[[10.0, 50], [2, 2], [29.5, 61.5]], [[3.25, 7.75], [30, 62], [15, 31]]])
    values = sample_features(features, points)
    assert values.shape == (2, 4, 3)
    torch.testing.assert_close(values[:, :2].transpose(1, 2), points)


def test_the_coarse_logits_enter_every_layer():
    head = PointHead(16, 24, 5, samples=1, doublings=1)
    assert [layer.in_channels for layer in head.layers] == [21, 29, 29]
    assert (head.predictor.in_channels, head.predictor.out_channels) == (29, 5)
    assert head(torch.rand(2, 16, 7), torch.rand(2, 5, 7)).shape == (2, 5, 7)


@pytest.fixture
def build(tiny_config):
    def make(**flat):
        torch.manual_seed(0)
        config = tiny_config(model__mask_head="pointrend", model__point_samples=40, **flat)
        return build_model(config.model, config.inference, 4)

    return make


def batch() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two images with bright discs, the second without any."""
    planes_PHW = np.zeros((1, SIDE, SIDE), np.uint16)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number, (row, column) in enumerate([(20, 18), (44, 40), (14, 50)], start=1):
        planes_PHW[0][np.hypot(rows - row, columns - column) < 9] = number
    noise = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.3
    empty = make_target(np.zeros_like(planes_PHW), np.zeros(0, np.int64))
    bright = noise[0] + 0.6 * torch.from_numpy(planes_PHW[0] > 0)
    return [bright, noise[1]], [make_target(planes_PHW, np.array([1, 2, 2])), empty]


def test_a_point_head_learns_what_the_coarse_mask_does_not_know(build):
    model = build().train()
    # Alone: trained together, the coarse mask would leave it ever harder points, and its loss would hardly fall.
    optimizer = torch.optim.AdamW(model.roi_heads.point_head.parameters(), lr=1e-2)
    course = []
    for _ in range(30):
        losses = model(*batch())
        optimizer.zero_grad()
        losses["loss_point"].backward()
        gradients = {name: p.grad for name, p in model.roi_heads.point_head.named_parameters()}
        assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients.values())
        optimizer.step()
        course.append(losses["loss_point"].item())
    assert course[0] == pytest.approx(np.log(2), abs=0.05)
    assert np.mean(course[-3:]) < 0.8 * course[0]


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_it_predicts_the_same_after_a_round_trip_of_its_state(build, nms):
    model, other = (build(model__point_doublings=1, inference__nms=nms) for _ in range(2))
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01)
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        (found, empty), (again, _) = (m.eval()(batch()[0]) for m in (model, other))
    assert len(found["boxes"]) > 0 and len(empty["boxes"]) > 0
    assert found["masks"].shape[1:] == (1, 56, 56)
    assert found["masks"].dtype == torch.float32
    assert 0 <= found["masks"].min() <= found["masks"].max() <= 1
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_a_point_head_changes_neither_the_other_weights_nor_what_is_detected(build, tiny_config):
    refined, config = build(), tiny_config()
    torch.manual_seed(0)
    plain = build_model(config.model, config.inference, 4)
    states = plain.state_dict(), refined.state_dict()
    assert {name for name in states[1] if name not in states[0]} == {
        f"roi_heads.point_head.{layer}.{kind}"
        for layer in ("layers.0", "layers.1", "layers.2", "predictor")
        for kind in ("weight", "bias")
    }
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    images, targets = batch()
    with torch.inference_mode():
        (found, _), (expected, _) = (copy.deepcopy(m).eval()(images) for m in (refined, plain))
    assert all(torch.equal(found[name], expected[name]) for name in ("boxes", "scores", "labels"))
    torch.manual_seed(1)
    losses = refined.train()(images, targets)
    torch.manual_seed(1)
    assert all(torch.equal(loss, losses[name]) for name, loss in plain.train()(images, targets).items())


def test_half_precision_features_are_sampled_in_full(build):
    model = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.train()(*batch())
        with torch.inference_mode():
            found, _ = model.eval()(batch()[0])
    sum(losses.values()).backward()
    assert torch.isfinite(losses["loss_point"])
    assert all(torch.isfinite(p.grad).all() for p in model.roi_heads.point_head.parameters())
    assert found["masks"].dtype == torch.float32
