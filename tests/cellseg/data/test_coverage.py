import time

import numpy as np
import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from cellseg.config import DataConfig, ModelConfig, parse_anchor_range, parse_numbers
from cellseg.data.coverage import anchor_coverage, best_anchor_ious, neighbours_of
from cellseg.data.packed import open_packed
from cellseg.model.anchors import CellAnchors

RATIOS = ModelConfig().anchor_ratios


def _table(boxes, size, anchors, ratios) -> np.ndarray:
    """The best IoU of each cell by the table of all cells and all anchors that the network makes for an image."""
    height, width = (-(-side // 32) * 32 for side in size)
    maps, sides = [], (height // 2, width // 2)
    for _ in range(5):
        sides = -(-sides[0] // 2), -(-sides[1] // 2)
        maps.append(torch.zeros(1, 1, *sides))
    generator = CellAnchors(parse_anchor_range(anchors), parse_numbers(ratios, "ratios"))
    (anchors_A4,) = generator(ImageList(torch.zeros(1, 3, height, width), [size]), maps)
    return box_iou(torch.tensor(boxes, dtype=torch.float64), anchors_A4.double()).amax(dim=1).numpy()


def _cells(count, size, seed):
    """Boxes of 2 to 120 px within an image, some of them at its border, on whole and half pixels."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(2), np.log(120), (count, 2)))
    corner = rng.uniform(-20, np.array(size[::-1]), (count, 2))
    low, high = corner.clip(0), np.minimum(corner + sides, size[::-1])
    boxes = np.round(2 * np.concatenate([low, high], axis=1)) / 2
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


@pytest.mark.parametrize("size", [(256, 320), (250, 333), (96, 33), (20, 500)])
@pytest.mark.parametrize(
    ("anchors", "ratios"), [("8-128", RATIOS), ("4-256", RATIOS), ("16-256", "0.3,1,3.3"), ("2-32", "1")]
)
def test_the_best_overlap_is_that_of_the_table_of_all_anchors(size, anchors, ratios):
    boxes = _cells(400, size, seed=sum(size))
    found = best_anchor_ious([boxes], [size], anchors, ratios)
    np.testing.assert_allclose(found, _table(boxes, size, anchors, ratios), atol=1e-6)


def test_images_of_many_sizes_count_together():
    sizes = [(64, 64), (200, 96), (96, 200)]
    boxes = [_cells(50, sizes[0], 0), np.zeros((0, 4), np.float32), _cells(70, sizes[2], 1)]
    expected = np.concatenate([_table(boxes[index], sizes[index], "8-128", RATIOS) for index in (0, 2)])
    assert anchor_coverage(boxes, sizes, "8-128") == pytest.approx((np.mean(expected >= 0.5), np.mean(expected >= 0.7)))


def test_an_anchors_own_place_is_covered_and_one_as_far_off_as_can_be_is_not():
    on_grid, off_grid = [120.0, 120, 136, 136], [124.0, 124, 140, 140]  # 16 px stand on every eighth pixel
    assert anchor_coverage([np.array([on_grid])], [(256, 256)], "8-128", "1") == (1.0, 1.0)
    assert anchor_coverage([np.array([off_grid])], [(256, 256)], "8-128", "1") == (0.0, 0.0)  # 12 * 12 of 368 px
    assert anchor_coverage([np.array([off_grid])], [(256, 256)], "8-256", "1") == (1.0, 1.0)  # 16 px on every fourth


@pytest.mark.parametrize("boxes", [[], [np.zeros((0, 4), np.float32)]])
def test_without_cells_there_is_no_share(boxes):
    assert anchor_coverage(boxes, [(64, 64)] * len(boxes), "8-128") == ()


def test_ten_thousand_cells_are_a_matter_of_a_moment():
    sizes = [(1000, 1333)] * 20
    boxes = [_cells(520, size, seed) for seed, size in enumerate(sizes)]
    start = time.perf_counter()
    anchor_coverage(boxes, sizes, "8-512")
    assert time.perf_counter() - start < 2
    assert sum(map(len, boxes)) > 10_000


@pytest.mark.parametrize(
    ("anchors", "neighbours"),
    [("8-128", ("4-64", "16-256", "8-512")), ("2-32", ("4-64", "2-128")), ("32-512", ("16-256", "64-1024", "32-2048"))],
)
def test_neighbours_are_smaller_larger_and_denser(anchors, neighbours):
    assert neighbours_of(anchors) == neighbours


@pytest.mark.slow
def test_on_real_nuclei_the_common_ranges_cover_what_the_table_says(shared_data, tmp_path):
    packed = open_packed(DataConfig(root=str(shared_data / "nuclei")), tmp_path)
    boxes = [packed.boxes(index) for index in range(len(packed))]
    assert anchor_coverage(boxes, packed.sizes, "8-128") == pytest.approx((0.788, 0.122), abs=0.001)
    assert anchor_coverage(boxes, packed.sizes, "8-512") == pytest.approx((0.948, 0.378), abs=0.001)
    few = slice(0, len(packed), 20)
    expected = [_table(b, s, "8-512", RATIOS) for b, s in zip(boxes[few], packed.sizes[few].tolist(), strict=True)]
    found = best_anchor_ious(boxes[few], packed.sizes[few], "8-512", RATIOS)
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
