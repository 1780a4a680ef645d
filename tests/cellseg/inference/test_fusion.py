"""Several voters, one set of cells."""

import numpy as np
import pytest

from cellseg.config import InferenceConfig
from cellseg.data.detections import Detections
from cellseg.data.rle import decode
from cellseg.data.softmask import SoftMask, mask_iou
from cellseg.inference.fusion import fuse

SIZE = (40, 60)
INFERENCE = InferenceConfig()


def found(*cells: tuple[int, int, int, float, int], probability: float = 1.0) -> Detections:
    """Square cells: (left, top, side, score, label)."""
    masks = [
        SoftMask.of(np.full((side, side), probability, np.float32), top, left, SIZE) for left, top, side, *_ in cells
    ]
    return Detections(
        SIZE,
        np.array([(x, y, x + side, y + side) for x, y, side, *_ in cells], np.float32).reshape(-1, 4),
        np.array([cell[3] for cell in cells], np.float32),
        np.array([cell[4] for cell in cells], np.int64),
        tuple(mask.encode(0.5, SIZE) for mask in masks),
        tuple(masks),
    )


def test_a_single_voter_is_returned_as_it_is():
    only = found((5, 5, 10, 0.9, 1), (6, 5, 10, 0.8, 1))
    assert fuse([only], INFERENCE, 1) is only


def test_voters_that_agree_change_nothing():
    one = found((5, 5, 10, 0.9, 1), (30, 5, 10, 0.5, 2))
    both = fuse([one, one], INFERENCE, 100)
    np.testing.assert_array_equal(both.boxes_N4, one.boxes_N4)
    np.testing.assert_allclose(both.scores_N, one.scores_N)
    assert both.rles == one.rles
    assert both.labels_N.tolist() == [1, 2]


def test_scores_are_divided_by_all_voters_also_those_that_found_nothing():
    cells = fuse([found((5, 5, 10, 0.9, 1), (30, 5, 10, 0.6, 1)), found((5, 5, 10, 0.6, 1)), found()], INFERENCE, 100)
    np.testing.assert_allclose(cells.scores_N, [0.5, 0.2], rtol=1e-6)


def test_weights_count_in_scores_boxes_and_masks():
    left, right = found((5, 5, 10, 0.5, 1)), found((7, 5, 10, 0.5, 1))
    assert fuse([left, right], INFERENCE, 100, weights=[3, 1]).boxes_N4.tolist() == [[5.5, 5, 15.5, 15]]
    heavy = fuse([left, right], INFERENCE, 100, weights=[3, 1])
    assert np.array_equal(decode(heavy.rles[0]), decode(left.rles[0]))
    np.testing.assert_allclose(fuse([left, found()], INFERENCE, 100, weights=[3, 1]).scores_N, [0.375])


def test_a_mask_is_the_average_of_probabilities_of_those_that_found_it():
    sure, unsure = found((5, 5, 10, 0.8, 1), probability=0.9), found((5, 5, 12, 0.8, 1), probability=0.6)
    (mask,) = fuse([sure, unsure, found()], INFERENCE, 100).soft
    assert (mask.top, mask.left, mask.values_hw.shape) == (5, 5, (12, 12))
    np.testing.assert_allclose(mask.values_hw[:10, :10] / 255, 0.75, atol=0.01)
    np.testing.assert_allclose(mask.values_hw[10:] / 255, 0.3, atol=0.01)


def test_classes_do_not_vote_for_each_other():
    cells = fuse([found((5, 5, 10, 0.8, 1)), found((5, 5, 10, 0.6, 2))], INFERENCE, 100)
    assert cells.labels_N.tolist() == [1, 2]
    np.testing.assert_allclose(cells.scores_N, [0.4, 0.3])


def test_neighbours_that_a_voter_tells_apart_stay_apart():
    # Boxes and masks overlap by 9 / 11 of a side, so each detection also agrees with the other voter's neighbour.
    pair = found((5, 5, 20, 0.9, 1), (7, 5, 20, 0.8, 1))
    soft = InferenceConfig(nms="soft")
    assert mask_iou(pair.soft[0], pair.soft[0].cut(0.5), pair.soft[1], pair.soft[1].cut(0.5)) > 0.8
    cells = fuse([pair, pair], soft, 100)
    np.testing.assert_allclose(cells.scores_N, [0.9, 0.8])  # and soft suppression has not lowered them again
    assert cells.rles == pair.rles


def test_touching_neighbours_of_two_voters_are_two_cells():
    cells = fuse([found((5, 5, 10, 0.8, 1)), found((10, 5, 10, 0.6, 1))], INFERENCE, 100)
    np.testing.assert_allclose(cells.scores_N, [0.4, 0.3])


def test_boxes_that_overlap_do_not_fuse_where_masks_do_not():
    upper, lower = np.triu(np.ones((20, 20), np.float32)), np.tril(np.ones((20, 20), np.float32), -1)
    votes = []
    for shape in (upper, lower):
        mask = SoftMask.of(shape, 5, 5, SIZE)
        whole = found((5, 5, 20, 0.8, 1))
        votes.append(Detections(SIZE, whole.boxes_N4, whole.scores_N, whole.labels_N, whole.rles, (mask,)))
    assert len(fuse(votes, InferenceConfig(nms="soft"), 100)) == 2


def test_hard_suppression_holds_after_fusion_too():
    # The masks agree by less than half, the boxes by more than the threshold.
    votes = [found((5, 5, 10, 0.8, 1)), found((9, 5, 10, 0.6, 1))]
    assert len(fuse(votes, InferenceConfig(nms_threshold=0.4), 100)) == 1
    assert len(fuse(votes, InferenceConfig(nms_threshold=0.5), 100)) == 2


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_empty_images_and_empty_masks_and_the_limit(nms):
    inference = InferenceConfig(nms=nms)
    nothing = fuse([found(), found()], inference, 100)
    assert len(nothing) == 0 and nothing.size == SIZE and nothing.soft == ()
    blank = found((5, 5, 10, 0.8, 1), probability=0.1)
    assert [int(decode(rle).sum()) for rle in fuse([blank, blank], inference, 100).rles] in ([0], [0, 0])
    far = found((5, 5, 10, 0.8, 1), (30, 5, 10, 0.9, 1))
    np.testing.assert_allclose(fuse([far, far], inference, 1).scores_N, [0.9])


def test_soft_masks_are_cut_at_the_border_and_keep_the_threshold_of_a_half():
    values = np.array([[0.2, 0.5, 0.49999], [1.0, 0.0, 0.7]], np.float32)
    mask = SoftMask.of(values, -1, 58, SIZE)
    assert (mask.top, mask.left, mask.values_hw.tolist()) == (0, 58, [[255, 0]])
    assert SoftMask.of(values, 3, 3, SIZE).cut(0.5).tolist() == (values >= 0.5).tolist()
    outside = SoftMask.of(values, 50, 3, SIZE)
    assert outside.values_hw.size == 0 and not decode(outside.encode(0.5, SIZE)).any()
    assert SoftMask.mean([outside, mask], [1, 1]).cut(0.5).any()
    assert SoftMask.union([outside, mask]).values_hw.tolist() == [[255, 0]]


def test_union_and_iou_of_masks():
    one, other = (SoftMask.of(np.ones((4, 4), np.float32), top, 2, SIZE) for top in (2, 4))
    both = SoftMask.union([one, other])
    assert (both.top, both.left, both.values_hw.shape) == (2, 2, (6, 4))
    assert mask_iou(one, one.cut(0.5), other, other.cut(0.5)) == 8 / 24
    far = SoftMask.of(np.ones((4, 4), np.float32), 30, 30, SIZE)
    assert mask_iou(one, one.cut(0.5), far, far.cut(0.5)) == 0
