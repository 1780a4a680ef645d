"""PQ, F1, AJI and count error against figures computed by hand."""

import numpy as np
import pytest

from cellseg.data.detections import Detections
from cellseg.data.rle import encode_window
from cellseg.inference.instance_scores import instance_scores, matched_ious

SIZE = (20, 40)


def cells(*squares: tuple[int, int, int, int]) -> Detections:
    """Rectangles 10 px high: (left, top, width, label)."""
    rles = tuple(encode_window(np.ones((10, w), bool), top, left, *SIZE) for left, top, w, _ in squares)
    boxes_N4 = np.array([(x, y, x + w, y + 10) for x, y, w, _ in squares], np.float32).reshape(-1, 4)
    labels_N = np.array([square[3] for square in squares], np.int64)
    return Detections(SIZE, boxes_N4, np.ones(len(rles), np.float32), labels_N, rles)


def test_perfect_and_empty_predictions():
    truth = cells((0, 0, 10, 1), (20, 0, 10, 2))
    perfect = instance_scores([truth], [truth], 3)  # the third class does not occur
    assert (perfect.pq, perfect.f1, perfect.aji, perfect.count_error) == (1, 1, 1, 0)
    nothing = instance_scores([cells()], [truth], 3)
    assert (nothing.pq, nothing.f1, nothing.aji, nothing.count_error) == (0, 0, 0, 2)
    neither = instance_scores([cells()], [cells()], 3)
    assert (neither.pq, neither.f1, neither.aji, neither.count_error) == (0, 0, 0, 0)


def test_figures_of_a_small_example():
    # One match of IoU 8/10; a detection of IoU 1/3 is a false positive, its cell is missed; a third one is alone.
    truth = cells((0, 0, 10, 1), (20, 0, 10, 1))
    found = cells((0, 0, 8, 1), (25, 0, 10, 1), (0, 10, 5, 1))
    scores = instance_scores([found], [truth], 1)
    assert scores.f1 == pytest.approx(1 / (1 + 2 / 2 + 1 / 2))
    assert scores.pq == pytest.approx(0.8 / 2.5)
    assert scores.aji == pytest.approx((80 + 50) / (100 + 150 + 50))
    assert scores.count_error == 1


def test_two_cells_may_take_the_same_detection_in_aji_only():
    truth = cells((0, 0, 10, 1), (10, 0, 8, 1))
    found = cells((0, 0, 18, 1))
    scores = instance_scores([found], [truth], 1)
    assert scores.aji == pytest.approx((100 + 80) / (180 + 180))
    assert scores.f1 == pytest.approx(1 / 1.5)  # IoU 10/18 is a match


def test_classes_are_compared_apart_and_averaged():
    truth, found = cells((0, 0, 10, 1), (20, 0, 10, 2)), cells((0, 0, 10, 1), (20, 0, 10, 1))
    scores = instance_scores([found], [truth], 2)
    assert scores.f1 == pytest.approx((1 / 1.5 + 0) / 2)


def test_an_iou_of_a_half_is_no_match_and_each_is_matched_once():
    assert matched_ious(np.array([[0.5]])).size == 0
    assert matched_ious(np.array([[0.9, 0.6], [0.8, 0.55]])).tolist() == [0.9, 0.55]
    assert matched_ious(np.zeros((0, 3))).size == 0
