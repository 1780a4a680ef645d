"""Which detections become cells, and their numbers in the label image."""

import numpy as np
import pytest
import shapely
from shapes import detections, disc

from cellseg.data.detections import Detections
from cellseg.data.rle import decode, decode_window, encode_window
from cellseg.inference.outputs.cells import number_cells
from cellseg.inference.outputs.outlines import outline


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.95, 1.0])
def test_a_window_of_an_rle_is_what_decoding_the_whole_image_gives(share):
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 30, 2)
        mask_HW = rng.random((height, width)) < share
        top, left, mask_hw = decode_window(encode_window(mask_HW, 0, 0, height, width))
        drawn_HW = np.zeros_like(mask_HW)
        drawn_HW[top : top + mask_hw.shape[0], left : left + mask_hw.shape[1]] = mask_hw
        np.testing.assert_array_equal(drawn_HW, mask_HW)
        if mask_HW.any():
            assert mask_hw.any(axis=0)[[0, -1]].all() and mask_hw.any(axis=1)[[0, -1]].all()


def test_a_window_costs_nothing_in_a_huge_image():
    side = 2**15  # a mask of the whole image would take a gigabyte
    top, left, mask_hw = decode_window(encode_window(np.ones((3, 4), bool), side - 3, 7, side, side))
    assert (top, left, mask_hw.shape, mask_hw.all()) == (side - 3, 7, (3, 4), True)


def test_damaged_run_lengths_are_refused():
    rle = encode_window(np.ones((3, 4), bool), 1, 1, 9, 9)
    for counts in (b"", rle["counts"][:-1], b"o", rle["counts"] + b"1"):
        with pytest.raises(ValueError, match="run lengths"):
            decode_window({"size": [9, 9], "counts": counts})


def test_where_cells_overlap_the_higher_score_wins():
    low, high = disc(30, 30, 10, 10, 6), disc(30, 30, 14, 14, 6)
    cells, labels_HW = number_cells(detections(low, high, scores=[0.4, 0.8]))
    assert cells.scores_N.tolist() == pytest.approx([0.8, 0.4])
    np.testing.assert_array_equal(labels_HW == 1, high)
    np.testing.assert_array_equal(labels_HW == 2, low & ~high)


def test_of_equal_scores_the_first_wins():
    first, second = disc(30, 30, 10, 10, 6), disc(30, 30, 14, 14, 6)
    _, labels_HW = number_cells(detections(first, second, scores=[0.5, 0.5]))
    np.testing.assert_array_equal(labels_HW == 1, first)


def test_covered_and_empty_detections_are_left_out_and_the_others_numbered_without_gaps():
    large, inside, apart = disc(30, 30, 10, 10, 6), disc(30, 30, 10, 10, 2), disc(30, 30, 24, 24, 3)
    found = detections(large, inside, apart, scores=[0.9, 0.8, 0.7])
    empty = encode_window(np.zeros((0, 0), bool), 0, 0, 30, 30)
    found = Detections(
        found.size,
        np.concatenate([found.boxes_N4, found.boxes_N4[:1]]),
        np.append(found.scores_N, np.float32(1)),
        np.append(found.labels_N, 1),
        (*found.rles, empty),
    )
    cells, labels_HW = number_cells(found)
    assert cells.scores_N.tolist() == pytest.approx([0.9, 0.7])
    assert np.unique(labels_HW).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(labels_HW == 2, apart)


def test_no_detections_are_an_empty_label_image():
    cells, labels_HW = number_cells(Detections.empty((5, 6)))
    assert len(cells) == 0 and labels_HW.shape == (5, 6) and not labels_HW.any()


def polygon_of(rle):
    return shapely.MultiPolygon([(part.outer, part.holes) for part in outline(rle)])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.9, 1.0])
def test_outlines_are_valid_polygons_that_hold_exactly_the_masks_pixels(share):
    rng = np.random.default_rng(1)
    ys, xs = np.mgrid[:20, :20]
    for _ in range(60):
        mask_HW = np.zeros((20, 20), bool)
        h, w = rng.integers(1, 12, 2)
        mask_HW[4 : 4 + h, 6 : 6 + w] = rng.random((h, w)) < share
        polygon = polygon_of(encode_window(mask_HW, 0, 0, 20, 20))
        assert polygon.is_valid, shapely.is_valid_reason(polygon)
        np.testing.assert_array_equal(shapely.contains_xy(polygon, xs + 0.5, ys + 0.5), mask_HW)


def test_a_hole_is_a_hole_and_corners_on_straight_lines_are_left_out():
    mask_HW = np.zeros((9, 9), bool)
    mask_HW[1:6, 2:8] = True
    mask_HW[3, 4] = False
    (part,) = outline(encode_window(mask_HW, 0, 0, 9, 9))
    assert sorted(part.outer) == [(2, 1), (2, 6), (8, 1), (8, 6)]
    assert [sorted(hole) for hole in part.holes] == [[(4, 3), (4, 4), (5, 3), (5, 4)]]
    assert decode(encode_window(mask_HW, 0, 0, 9, 9)).sum() == 29
