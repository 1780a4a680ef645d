"""Where tiles lie, and what becomes of cells that several of them show."""

import numpy as np
import pytest
import torch
from torch import nn

from cellseg.data.detections import Detections
from cellseg.data.rle import decode, encode_window
from cellseg.inference.image import predict_image
from cellseg.inference.tiles import (
    CUT_MARGIN,
    CUT_SHARE,
    TileDetections,
    merge_tiles,
    near_inner_edge,
    tile_windows,
)
from cellseg.model.build import build_model

# Where tiles lie


@pytest.mark.parametrize("size", [(1, 1), (99, 64), (100, 100), (101, 100), (100, 300), (365, 777), (4000, 4000)])
@pytest.mark.parametrize(("side", "overlap"), [(100, 32), (100, 99), (128, 64), (1024, 64)])
def test_tiles_cover_the_image_are_equal_and_share_the_overlap(size, side, overlap):
    windows = np.array(
        tile_windows(*size, side, overlap) if max(size) < 1000 or overlap < 99 else [[0, 0, *size[::-1]]]
    )
    if len(windows) == 1:
        assert windows.tolist() == [[0, 0, size[1], size[0]]]
        return
    for axis, length in ((0, size[1]), (1, size[0])):
        starts, ends = np.unique(windows[:, axis]), np.unique(windows[:, axis + 2])
        assert (starts[0], ends[-1]) == (0, length)
        assert (ends - starts == min(side, length)).all()
        assert (ends[:-1] - starts[1:] >= overlap).all()
        # One tile fewer could not do it.
        assert len(starts) == 1 or (len(starts) - 1) * (side - overlap) + overlap < length


def test_without_a_side_the_image_is_one_tile():
    assert tile_windows(4000, 3000, None, 64) == [(0, 0, 3000, 4000)]


def test_tiles_are_listed_row_by_row():
    assert tile_windows(100, 150, 100, 50) == [(0, 0, 100, 100), (50, 0, 150, 100)]
    assert [window[:2] for window in tile_windows(150, 150, 100, 50)] == [(0, 0), (50, 0), (0, 50), (50, 50)]


@pytest.mark.parametrize(
    ("box", "near"),
    [
        ([110, 210, 190, 290], False),
        ([103, 210, 190, 290], True),
        ([110, 210, 197.5, 290], True),
        ([110, 210, 190, 300], False),
        ([110, 200, 190, 290], True),
    ],
)
def test_only_borders_inside_the_image_cut_cells(box, near):
    window = (100, 200, 200, 300)  # at the lower border of an image of 300 x 500
    assert near_inner_edge(np.array([box], np.float32), window, (300, 500)).tolist() == [near]


def test_no_boxes_are_near_no_edge():
    assert near_inner_edge(np.zeros((0, 4), np.float32), (0, 0, 50, 50), (100, 100)).shape == (0,)


# Merging, told cell by cell

SIZE = (100, 160)
LEFT, RIGHT = (0, 0, 100, 100), (60, 0, 160, 100)
"""Two tiles of an image of 100 x 160 that share columns 60 to 100."""


def rectangles(*cells, labels=None) -> Detections:
    """Detections of (x1, y1, x2, y2, score) that fill their boxes."""
    boxes_N4 = np.array([cell[:4] for cell in cells], np.float32).reshape(-1, 4)
    rles = [
        encode_window(np.ones((int(y2 - y1), int(x2 - x1)), bool), int(y1), int(x1), *SIZE)
        for x1, y1, x2, y2 in boxes_N4
    ]
    scores_N = np.array([cell[4] for cell in cells], np.float32)
    labels_N = np.array(labels or [1] * len(cells), np.int64)
    return Detections(SIZE, boxes_N4, scores_N, labels_N, tuple(rles))


def merged(*tiles: tuple[tuple, Detections]) -> Detections:
    return merge_tiles([TileDetections(window, found) for window, found in tiles])


def boxes(found: Detections) -> list[tuple]:
    """Sorted (x1, y1, x2, y2, score)."""
    return sorted((*map(int, box), round(float(s), 3)) for box, s in zip(found.boxes_N4, found.scores_N, strict=True))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        pytest.param([(70, 10, 90, 30, 0.8)], [(71, 10, 91, 31, 0.9)], [(71, 10, 91, 31, 0.9)], id="whole in both"),
        pytest.param(
            [(75, 10, 100, 30, 0.9)], [(75, 10, 115, 30, 0.5)], [(75, 10, 115, 30, 0.5)], id="cut by the left"
        ),
        pytest.param([(45, 10, 90, 30, 0.5)], [(60, 10, 90, 30, 0.9)], [(45, 10, 90, 30, 0.5)], id="cut by the right"),
        pytest.param([(97, 10, 100, 30, 0.4)], [(98, 12, 120, 30, 0.9)], [(98, 12, 120, 30, 0.9)], id="a sliver"),
        pytest.param([(97, 5, 100, 50, 0.9)], [(98, 6, 120, 50, 0.9)], [(98, 6, 120, 50, 0.9)], id="as good a sliver"),
        pytest.param([(20, 10, 100, 30, 0.6)], [(60, 10, 150, 30, 0.8)], [(20, 10, 150, 30, 0.8)], id="cut by both"),
        pytest.param([(70, 10, 90, 30, 0.8)], [], [(70, 10, 90, 30, 0.8)], id="found by one alone"),
        pytest.param([(80, 10, 100, 30, 0.8)], [], [], id="cut, and not found by the one that shows it whole"),
        pytest.param([(30, 10, 100, 30, 0.8)], [], [(30, 10, 100, 30, 0.8)], id="cut, and whole in none"),
        pytest.param([(66, 10, 98, 30, 0.8)], [], [], id="near a border"),
        pytest.param([(62, 10, 98, 30, 0.8)], [(62, 10, 97, 30, 0.7)], [(62, 10, 98, 30, 0.8)], id="near both borders"),
        pytest.param([], [], [], id="nothing"),
        pytest.param(
            [(64, 10, 80, 30, 0.8), (80, 10, 96, 30, 0.7)],
            [(64, 10, 80, 30, 0.7), (80, 10, 96, 30, 0.8)],
            [(64, 10, 80, 30, 0.8), (80, 10, 96, 30, 0.8)],
            id="neighbours that touch",
        ),
        pytest.param(
            [(20, 10, 100, 30, 0.8), (20, 30, 100, 50, 0.8)],
            [(60, 10, 150, 30, 0.8), (60, 30, 150, 50, 0.8)],
            [(20, 10, 150, 30, 0.8), (20, 30, 150, 50, 0.8)],
            id="large neighbours that touch",
        ),
        pytest.param(
            [(70, 10, 100, 40, 0.9)],
            [(70, 10, 130, 40, 0.9), (75, 12, 85, 20, 0.6)],
            [(70, 10, 130, 40, 0.9), (75, 12, 85, 20, 0.6)],
            id="a cell that one tile found within another",
        ),
        pytest.param(
            [(20, 10, 100, 20, 0.9), (20, 20, 100, 30, 0.9)],
            [(60, 10, 150, 20, 0.9), (60, 20, 150, 30, 0.9), (60, 10, 150, 30, 0.1)],
            [(20, 10, 150, 20, 0.9), (20, 20, 150, 30, 0.9), (60, 10, 150, 30, 0.1)],
            id="a poor detection over two cut cells ties nothing together",
        ),
        pytest.param(
            [(20, 10, 100, 30, 0.9)],
            [(60, 8, 150, 32, 0.1)],
            [(20, 10, 100, 30, 0.9), (60, 8, 150, 32, 0.1)],
            id="a poor detection becomes no part of a good one",
        ),
    ],
)
def test_cells_that_two_tiles_show(left, right, expected):
    one, other = (LEFT, rectangles(*left)), (RIGHT, rectangles(*right))
    assert boxes(merged(one, other)) == expected
    assert boxes(merged(other, one)) == expected


def test_classes_do_not_affect_each_other():
    left, right = rectangles((70, 10, 90, 30, 0.8), labels=[1]), rectangles((70, 10, 90, 30, 0.9), labels=[2])
    found = merged((LEFT, left), (RIGHT, right))
    assert found.labels_N.tolist() == [2, 1] and found.scores_N.tolist() == pytest.approx([0.9, 0.8])


def test_neighbours_with_the_same_box_but_other_pixels_stay_two():
    upper_hw = np.triu(np.ones((30, 30), bool), 1)
    triangles = []
    for mask_hw, score in ((upper_hw, 0.9), (~upper_hw, 0.8)):
        part = rectangles((65, 10, 95, 40, score))
        rles = (encode_window(mask_hw, 10, 65, *SIZE),)
        triangles.append(Detections(SIZE, part.boxes_N4, part.scores_N, part.labels_N, rles))
    found = merged((LEFT, triangles[0]), (RIGHT, triangles[1]))
    assert len(found) == 2
    assert (decode(found.rles[0]) ^ decode(found.rles[1])).sum() == 900


def test_a_joined_cell_has_all_pixels_of_its_parts():
    found = merged((LEFT, rectangles((20, 10, 100, 30, 0.6))), (RIGHT, rectangles((60, 12, 150, 32, 0.8))))
    (mask_HW,) = map(decode, found.rles)
    assert mask_HW.sum() == 80 * 20 + 90 * 20 - 40 * 18
    assert found.boxes_N4.tolist() == [[20, 10, 150, 32]]
    assert (found.boxes_N4.dtype, found.scores_N.dtype, found.labels_N.dtype) == (np.float32, np.float32, np.int64)


def test_a_cell_across_many_tiles_is_joined_once():
    windows = [(left, 0, left + 60, 100) for left in (0, 33, 66, 100)]
    tiles = [(w, rectangles((max(w[0], 5), 10, min(w[2], 155), 30, 0.5 + w[0] / 1000))) for w in windows]
    assert boxes(merged(*tiles)) == [(5, 10, 155, 30, 0.6)]


def test_masks_without_a_pixel_match_none():
    empty = encode_window(np.zeros((1, 1), bool), 0, 0, *SIZE)
    part = rectangles((70, 10, 90, 30, 0.8))
    hollow = Detections(SIZE, part.boxes_N4, part.scores_N, part.labels_N, (empty,))
    assert len(merged((LEFT, hollow), (RIGHT, hollow))) == 2


def test_a_single_tile_is_returned_as_it_is():
    found = rectangles((70, 10, 90, 30, 0.5), (70, 10, 90, 30, 0.8))
    assert merged(((0, 0, 160, 100), found)) is found


# Whole predictions


class Seeing(nn.Module):
    """Finds every cell of the image it is given, a colour each: red is the number, green the score, blue the class.

    Cells are cut at the image's border; their scores are not lower for that.
    """

    def __init__(self):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int]] = []

    def forward(self, images):
        image_CHW = (images[0] * 255).round().long()
        self.seen.append(tuple(image_CHW.shape[1:]))
        found = {"boxes": [], "labels": [], "scores": [], "masks": []}
        for number in image_CHW[0][image_CHW[0] > 0].unique():
            mask_HW = image_CHW[0] == number
            rows, columns = torch.nonzero(mask_HW).T
            top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            _, score, label = image_CHW[:, rows[0], columns[0]]
            mask_11hw = mask_HW[None, None, top:bottom, left:right].float()
            found["boxes"].append(torch.tensor([left, top, right, bottom], dtype=torch.float32))
            found["labels"].append(label)
            found["scores"].append(score / 255)
            found["masks"].append(nn.functional.interpolate(mask_11hw, (28, 28), mode="bilinear")[0])
        empty = {"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 1, 28, 28)}
        return [{name: torch.stack(v) if v else empty.get(name, torch.zeros(0)) for name, v in found.items()}]


def tissue(seed: int, height: int, width: int, num_cells: int) -> np.ndarray:
    """An image of cells that touch all around, for :class:`Seeing`: the nearest of random points, without the gaps."""
    rng = np.random.default_rng(seed)
    points_N2 = rng.random((num_cells, 2)) * [height, width]
    grid_HW2 = np.stack(list(np.mgrid[:height, :width]), axis=2) + 0.5
    number_HW = np.square(grid_HW2[:, :, None] - points_N2).sum(axis=3).argmin(axis=2)
    colors_N3 = np.stack([np.arange(num_cells) + 1, rng.permutation(num_cells) + 40, rng.integers(1, 3, num_cells)], 1)
    colors_N3[rng.random(num_cells) < 0.1] = 0
    return colors_N3[number_HW].astype(np.uint8)


def as_set(found: Detections) -> set:
    return {
        (tuple(box), score, label, rle["counts"])
        for box, score, label, rle in zip(
            found.boxes_N4.tolist(), found.scores_N.tolist(), found.labels_N.tolist(), found.rles, strict=True
        )
    }


@pytest.mark.parametrize("nms", ["hard", "soft"])
@pytest.mark.parametrize("seed", range(3))
def test_cells_smaller_than_the_overlap_come_out_of_tiles_as_of_the_whole(tiny_config, seed, nms):
    image_HWC = tissue(seed, 230, 300, 160)
    config = tiny_config(inference__nms=nms, inference__nms_threshold=0.95)
    whole = predict_image(Seeing(), image_HWC, config)
    sides = whole.boxes_N4[:, 2:] - whole.boxes_N4[:, :2]
    assert sides.max() < 72 and len(whole) > 120
    model = Seeing()
    found = predict_image(model, image_HWC, config.replace(inference__tile=128, inference__tile_overlap=80))
    assert model.seen == [(128, 128)] * len(model.seen) and len(model.seen) > 9
    assert as_set(found) == as_set(whole)
    assert (np.diff(found.scores_N) <= 0).all()


def test_cells_larger_than_the_overlap_come_out_once_and_whole(tiny_config):
    image_HWC = tissue(0, 400, 500, 30)
    config = tiny_config(inference__nms_threshold=0.95)
    whole = predict_image(Seeing(), image_HWC, config)
    assert (whole.boxes_N4[:, 2:] - whole.boxes_N4[:, :2]).max() > 120
    found = predict_image(Seeing(), image_HWC, config.replace(inference__tile=160, inference__tile_overlap=40))
    assert len(found) == len(whole)
    for score, rle in zip(whole.scores_N, whole.rles, strict=True):
        twin = decode(found.rles[int(np.flatnonzero(found.scores_N == score)[0])])
        assert (twin & decode(rle)).sum() / (twin | decode(rle)).sum() > 0.85


def test_tiles_are_cut_from_the_scaled_image_and_their_cells_come_back_to_its_pixels(tiny_config):
    image_HWC = np.zeros((100, 200, 3), np.uint8)
    image_HWC[20:60, 90:130] = (1, 200, 1)
    image_HWC[70:90, 10:30] = (2, 100, 2)
    model = Seeing()
    config = tiny_config(data__shorter_side=50, inference__tile=64, inference__tile_overlap=32)
    found = predict_image(model, image_HWC, config)
    assert model.seen == [(50, 64)] * 3
    np.testing.assert_allclose(found.boxes_N4, [[90, 20, 130, 60], [10, 70, 30, 90]], atol=2)
    assert found.labels_N.tolist() == [1, 2]
    assert [int(decode(rle).sum()) for rle in found.rles] == pytest.approx([1600, 400], rel=0.1)


def test_each_scale_is_tiled_and_merged_before_scales_are(tiny_config):
    image_HWC = np.zeros((100, 200, 3), np.uint8)
    image_HWC[20:60, 80:120] = (1, 200, 1)
    model = Seeing()
    config = tiny_config(inference__scales="0.5,1", inference__tile=120, inference__tile_overlap=40)
    found = predict_image(model, image_HWC, config)
    assert model.seen == [(50, 100), (100, 120), (100, 120)]
    assert len(found) == 1


@pytest.mark.parametrize(("limit", "expected"), [(1, 2), (2, 3)])
def test_an_image_may_have_the_detections_of_all_its_tiles(tiny_config, limit, expected):
    # Three cells, and two tiles at the larger scale.
    image_HWC = np.zeros((64, 200, 3), np.uint8)
    for number, left in enumerate((5, 60, 160)):
        image_HWC[20:44, left : left + 24] = (number + 1, 200 - number, 1)
    config = tiny_config(
        inference__scales="0.5,1",
        inference__tile=128,
        inference__tile_overlap=32,
        model__detections_per_image=limit,
    )
    assert len(predict_image(Seeing(), image_HWC, config)) == expected


@pytest.mark.parametrize("size", [(60, 80), (1, 1), (64, 64)])
def test_an_image_no_larger_than_a_tile_is_predicted_as_without_tiles(tiny_config, size):
    config = tiny_config(inference__score_threshold=0.0)
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, 2).eval()
    image_HWC = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tiled = config.replace(inference__tile=80, inference__tile_overlap=32)
    found, whole = (predict_image(model, image_HWC, c) for c in (tiled, config))
    np.testing.assert_array_equal(found.boxes_N4, whole.boxes_N4)
    np.testing.assert_array_equal(found.scores_N, whole.scores_N)
    assert found.rles == whole.rles


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_a_real_model_predicts_in_tiles_at_several_scales(tiny_config, nms):
    config = tiny_config(
        inference__score_threshold=0.0,
        inference__scales="0.5,1",
        inference__tile=64,
        inference__tile_overlap=32,
        inference__nms=nms,
    )
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, 2).eval()
    image_HWC = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    found = predict_image(model, image_HWC, config)
    assert 20 < len(found) <= 20 * 8  # eight tiles at the larger scale
    assert (np.diff(found.scores_N) <= 0).all()
    assert (found.boxes_N4 >= 0).all() and (found.boxes_N4 <= np.array([130, 90] * 2) + 1e-3).all()


class Crowd(nn.Module):
    """Finds 120 cells of 40 px at random places of each image, with fine masks."""

    def __init__(self):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        corners = torch.rand(120, 2) * (torch.tensor(images[0].shape[:0:-1]) - 40)
        boxes = torch.cat([corners, corners + 40], dim=1)
        masks = torch.full((120, 1, 224, 224), 0.9)
        return [{"boxes": boxes, "labels": torch.ones(120).long(), "scores": torch.rand(120), "masks": masks}]


@pytest.mark.slow
def test_three_thousand_cells_of_a_large_image_take_the_memory_of_a_tile(tiny_config):
    from benchmarks.measure import alternate

    config = tiny_config(data__longer_side=4000, inference__tile=1024, inference__nms_threshold=0.9)
    torch.manual_seed(0)
    image_HWC = np.zeros((4000, 4000, 3), np.uint8)
    predict_image(Crowd(), image_HWC[:100, :100], config)
    run = alternate({"tiled": lambda: predict_image(Crowd(), image_HWC, config)}, 1, memory="cpu")
    assert len(run.results["tiled"]) > 2500
    assert run.peak_extra_bytes["tiled"] < 200e6  # a tile is 40 MB with its masks; those of all would be 600 MB


@pytest.mark.parametrize(
    ("side", "distance", "near"),
    [
        (12, CUT_MARGIN, True),  # of a small box the margin in pixels decides
        (12, CUT_MARGIN + 1, False),
        (80, CUT_SHARE * 80, True),  # of a large one its share
        (80, CUT_SHARE * 80 + 1, False),
    ],
)
def test_the_larger_of_both_margins_says_what_a_border_may_cut(side, distance, near):
    window = (100, 200, 300, 400)  # all borders inside an image of 600 x 700
    for axis in (0, 1):
        box = np.full(4, 250.0)
        box[axis] = window[axis] + distance
        box[axis + 2] = box[axis] + side
        box[1 - axis], box[3 - axis] = window[1 - axis] + 60, window[1 - axis] + 60 + side
        mirrored = box[[2, 3, 0, 1]] * -1 + [400, 600, 400, 600]
        boxes_N4 = np.array([box, mirrored], np.float32)
        assert near_inner_edge(boxes_N4, window, (600, 700)).tolist() == [near, near], axis


def test_only_the_best_match_is_the_same_cell():
    """The left tile found a cell twice, as the network kept both. The right tile replaces only the better match."""
    left = rectangles((70, 10, 90, 30, 0.8), (70, 10, 90, 26, 0.7))
    right = rectangles((70, 10, 90, 30, 0.9))
    expected = [(70, 10, 90, 26, 0.7), (70, 10, 90, 30, 0.9)]
    assert boxes(merged((LEFT, left), (RIGHT, right))) == expected
    assert boxes(merged((RIGHT, right), (LEFT, left))) == expected
