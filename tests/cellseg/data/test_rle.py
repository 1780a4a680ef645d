import json
import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cellseg.data.rle import decode, encode_sample, encode_window, to_json_rle
from cellseg.data.sample import Sample
from cellseg.inference.paste import paste_masks


def encode_whole(mask_HW: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))


def whole(mask_hw: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """The mask laid into an image, pixel by pixel."""
    mask_HW = np.zeros((height, width), dtype=bool)
    for row, column in np.argwhere(mask_hw):
        if 0 <= row + top < height and 0 <= column + left < width:
            mask_HW[row + top, column + left] = True
    return mask_HW


@pytest.mark.parametrize("density", [0.0, 0.3, 0.9, 1.0])
def test_a_window_encodes_like_the_whole_mask_wherever_it_lies(density):
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = (int(side) for side in rng.integers(1, 9, size=2))
        mask_hw = rng.random(rng.integers(0, 12, size=2)) < density
        top, left = (int(offset) for offset in rng.integers(-10, 11, size=2))
        expected = encode_whole(whole(mask_hw, top, left, height, width))
        assert encode_window(mask_hw, top, left, height, width) == expected


@pytest.mark.parametrize(
    "mask_hw, top, left",
    [
        pytest.param(np.ones((4, 5), bool), 0, 0, id="whole image"),
        pytest.param(np.ones((4, 2), bool), 0, 2, id="full columns run into each other"),
        pytest.param(np.ones((1, 1), bool), 3, 4, id="last pixel"),
        pytest.param(np.ones((1, 1), bool), 0, 0, id="first pixel"),
        pytest.param(np.zeros((2, 2), bool), 1, 1, id="no pixel"),
        pytest.param(np.zeros((0, 3), bool), 1, 1, id="no row"),
        pytest.param(np.ones((3, 3), bool), 9, 9, id="outside"),
        pytest.param(np.ones((3, 3), bool), -3, 0, id="above"),
    ],
)
def test_edge_cases_of_windows(mask_hw, top, left):
    expected = whole(mask_hw, top, left, 4, 5)
    rle = encode_window(mask_hw, top, left, 4, 5)
    assert rle == encode_whole(expected)
    assert np.array_equal(decode(rle), expected)


def test_cells_of_a_sample_are_encoded_in_the_order_of_their_numbers_over_all_planes():
    planes_PHW = np.zeros((2, 6, 7), np.uint16)
    planes_PHW[1, 0:3, 0:2] = 1
    planes_PHW[0, 2:6, 1:4] = 3
    planes_PHW[0, 0, 6] = 2
    sample = Sample("a", np.zeros((6, 7, 3), np.uint8), planes_PHW, np.array([1, 2, 1]))
    expected = [encode_whole((planes_PHW == number).any(axis=0)) for number in (1, 2, 3)]
    assert encode_sample(sample) == expected


def test_a_sample_without_cells_has_no_rles():
    sample = Sample("a", np.zeros((6, 7, 3), np.uint8), np.zeros((1, 6, 7), np.uint16), np.zeros(0, np.int64))
    assert encode_sample(sample) == []


def reference_paste(probabilities_NMM, boxes_N4, height, width, threshold):
    masks = paste_masks_in_image(
        torch.from_numpy(probabilities_NMM)[:, None], torch.from_numpy(boxes_N4), (height, width)
    )
    return [encode_whole(mask.numpy()) for mask in masks[:, 0] >= threshold]


def smooth_masks(rng: np.random.Generator, count: int, side: int = 28) -> np.ndarray:
    noise = torch.from_numpy(rng.random((count, 1, side, side), dtype=np.float32))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)[:, 0].numpy()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.55])
@pytest.mark.parametrize("side", [14, 28, 56])
def test_pasting_equals_torchvision_bit_for_bit(threshold, side):
    rng = np.random.default_rng(side)
    centers = rng.random((60, 2)) * [90, 70]
    half_sides = rng.choice([0.01, 0.4, 3.0, 12.0, 60.0], size=(60, 2)) * rng.random((60, 2))
    boxes_N4 = np.concatenate([centers - half_sides, centers + half_sides], axis=1).astype(np.float32)
    boxes_N4 = boxes_N4.clip(0, [90, 70, 90, 70]).astype(np.float32)
    probabilities_NMM = smooth_masks(rng, 60, side)
    expected = reference_paste(probabilities_NMM, boxes_N4, 70, 90, threshold)
    assert paste_masks(probabilities_NMM, boxes_N4, 70, 90, threshold) == expected
    assert any(coco_mask.area(rle) for rle in expected)


@pytest.mark.parametrize("side", [1, 28, 56, 112, 224])
@pytest.mark.parametrize("seed", range(12))
def test_pasting_of_any_boxes_equals_torchvision_bit_for_bit(seed, side):
    """Boxes of all sizes from nothing to several images, anywhere as long as some pixel of theirs is in the image."""
    rng = np.random.default_rng([seed, side])
    height, width = (int(length) for length in rng.integers(1, 150, size=2))
    places_N2 = rng.random((12, 2)) * [width, height]
    before_N2, after_N2 = 10 ** rng.uniform(-3, 2.3, size=(2, 12, 2)) * rng.choice([0, 1, 1, 1], size=(2, 12, 2))
    boxes_N4 = np.concatenate([places_N2 - before_N2, places_N2 + after_N2], axis=1)
    boxes_N4[rng.random((12, 4)) < 0.2] //= 1  # edges of pixels
    boxes_N4 = boxes_N4.astype(np.float32)
    probabilities_NMM = smooth_masks(rng, 12, side) if side > 1 else rng.random((12, 1, 1), dtype=np.float32)
    threshold = float(rng.choice([probabilities_NMM[0, 0, 0], rng.uniform(0.01, 1), 0.5]))
    expected = reference_paste(probabilities_NMM, boxes_N4, height, width, threshold)
    assert paste_masks(probabilities_NMM, boxes_N4, height, width, threshold) == expected


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([-7.3, 5.5, 20.4, 19.0], id="crosses left"),
        pytest.param([5.1, -7.3, 20.4, 19.0], id="crosses top"),
        pytest.param([25.1, 7.3, 40.4, 19.0], id="crosses right"),
        pytest.param([5.1, 17.3, 20.4, 30.2], id="crosses bottom"),
        pytest.param([-7.3, -2.5, 20.4, 9.0], id="crosses top left"),
        pytest.param([30.0, 20.0, 55.0, 47.0], id="crosses bottom right"),
        pytest.param([-5.0, -5.0, 60.0, 50.0], id="larger than the image"),
        pytest.param([-500.5, -900.0, 600.0, 1150.3], id="huge"),
        pytest.param([-3.0, -3.0, 0.0, 0.0], id="touches the first corner"),
        pytest.param([40.0, 30.0, 44.0, 33.0], id="touches the last corner"),
        pytest.param([10.2, 10.2, 10.3, 30.0], id="thinner than a pixel"),
        pytest.param([10.2, 10.2, 30.0, 10.9], id="lower than a pixel"),
        pytest.param([10.9, 10.9, 11.1, 11.1], id="thinner than a pixel, between two"),
        pytest.param([10.0, 10.0, 10.0, 10.0], id="a point"),
        pytest.param([10.0, 10.0, 10.0, 20.0], id="a line"),
        pytest.param([0.0, 0.0, 0.2, 0.2], id="a point in the corner"),
        pytest.param([39.9, 29.9, 40.0, 30.0], id="a point in the far corner"),
        pytest.param([0.0, 0.0, 40.0, 30.0], id="the image"),
    ],
)
@pytest.mark.parametrize("side", [28, 56, 112, 224])
def test_pasting_of_odd_boxes_equals_torchvision(box, side):
    boxes_N4 = np.array([box, box], np.float32)
    masks_NMM = np.stack([np.full((side, side), 0.9, np.float32), smooth_masks(np.random.default_rng(0), 1, side)[0]])
    expected = reference_paste(masks_NMM, boxes_N4, 30, 40, 0.5)
    assert paste_masks(masks_NMM, boxes_N4, 30, 40, 0.5) == expected


@pytest.mark.parametrize(
    "box", [[-30, 5, -10, 20], [5, -30, 20, -10], [60, 5, 80, 20], [5, 60, 20, 80], [-40, -40, -10, -10]]
)
def test_a_box_outside_of_the_image_has_no_pixel(box):
    # torchvision's slices would not fit there, and its network never returns such a box.
    (rle,) = paste_masks(np.full((1, 28, 28), 0.9, np.float32), np.array([box], np.float32), 30, 40, 0.5)
    assert rle == encode_whole(np.zeros((30, 40), bool))


def test_pasting_leaves_the_masks_and_boxes_as_they_are():
    masks_NMM, boxes_N4 = smooth_masks(np.random.default_rng(0), 3), np.array([[1, 2, 20, 30]] * 3, np.float32)
    before = masks_NMM.copy(), boxes_N4.copy()
    paste_masks(masks_NMM, boxes_N4, 30, 40, 0.5)
    assert np.array_equal(masks_NMM, before[0]) and np.array_equal(boxes_N4, before[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask_side", "box_side", "megabytes"),
    [pytest.param(28, 40, 20, id="cells"), pytest.param(28, 500, 40, id="large"), pytest.param(224, 40, 20, id="fine")],
)
def test_three_thousand_masks_of_a_large_image_take_the_memory_of_one(mask_side, box_side, megabytes):
    from benchmarks.measure import alternate

    rng = np.random.default_rng(0)
    corners_N2 = rng.random((3000, 2), dtype=np.float32) * (4000 - box_side)
    boxes_N4 = np.concatenate([corners_N2, corners_N2 + box_side], axis=1)
    probabilities_NMM = np.broadcast_to(smooth_masks(rng, 1, mask_side), (3000, mask_side, mask_side)).copy()
    paste_masks(probabilities_NMM[:1], boxes_N4[:1], 4000, 4000, 0.5)
    run = alternate({"paste": lambda: paste_masks(probabilities_NMM, boxes_N4, 4000, 4000, 0.5)}, 1, memory="cpu")
    assert len(run.results["paste"]) == 3000
    assert run.peak_extra_bytes["paste"] < megabytes * 1e6


def test_pasting_nothing_gives_nothing():
    assert paste_masks(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), 30, 40, 0.5) == []


def test_encoding_a_cell_of_a_large_image_takes_memory_for_the_cell_only():
    mask_hw = np.ones((30, 30), bool)
    tracemalloc.start()
    encode_window(mask_hw, 3000, 3000, 4000, 4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_json_form_is_plain_text_and_decodes_to_the_same_mask():
    mask_HW = np.random.default_rng(0).random((9, 11)) < 0.5
    rle = to_json_rle(encode_window(mask_HW, 0, 0, 9, 11))
    assert np.array_equal(decode(json.loads(json.dumps(rle))), mask_HW)
