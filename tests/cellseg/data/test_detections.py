import json

import numpy as np
import pytest

from cellseg.data.detections import Detections
from cellseg.data.rle import decode, encode_window
from cellseg.data.sample import Sample


def three_detections() -> Detections:
    corners = [(0, 0), (1, 4), (5, 2)]
    return Detections(
        size=(8, 9),
        boxes_N4=np.array([[x, y, x + 3, y + 2] for y, x in corners], np.float32),
        scores_N=np.array([0.2, 0.5, 0.9], np.float32),
        labels_N=np.array([1, 2, 1]),
        rles=tuple(encode_window(np.ones((2, 3), bool), y, x, 8, 9) for y, x in corners),
    )


def test_the_truth_of_a_sample_has_exclusive_edges_and_score_one():
    planes_PHW = np.zeros((2, 8, 9), np.uint16)
    planes_PHW[0, 1:4, 2:7] = 2
    planes_PHW[1, 3:8, 6:9] = 1
    truth = Detections.from_sample(Sample("a", np.zeros((8, 9, 3), np.uint8), planes_PHW, np.array([4, 3])))
    assert truth.size == (8, 9)
    assert truth.boxes_N4.tolist() == [[6, 3, 9, 8], [2, 1, 7, 4]]
    assert truth.scores_N.tolist() == [1, 1]
    assert truth.labels_N.tolist() == [4, 3]
    assert [decode(rle).sum() for rle in truth.rles] == [15, 15]


def test_above_keeps_scores_of_at_least_the_threshold():
    detections = three_detections()
    kept = detections.above(0.5)
    assert len(kept) == 2
    assert kept.labels_N.tolist() == [2, 1]
    assert kept.rles == detections.rles[1:]
    assert len(detections.above(0.0)) == 3
    assert len(detections.above(1.0)) == 0


def test_select_follows_the_given_order():
    assert three_detections().select([2, 0]).scores_N.tolist() == pytest.approx([0.9, 0.2])


def test_nothing_found_is_a_legal_result():
    nothing = Detections.empty((8, 9))
    assert len(nothing) == len(nothing.above(0.5)) == 0
    assert nothing.boxes_N4.shape == (0, 4)
    assert nothing.to_coco_results(1) == []


def test_coco_records_hold_xywh_boxes_of_plain_numbers_and_survive_json():
    records = json.loads(json.dumps(three_detections().to_coco_results(image_id=7)))
    assert [record["bbox"] for record in records] == [[0, 0, 3, 2], [4, 1, 3, 2], [2, 5, 3, 2]]
    assert [record["category_id"] for record in records] == [1, 2, 1]
    assert {record["image_id"] for record in records} == {7}
    assert records[2]["score"] == pytest.approx(0.9)
    assert decode(records[1]["segmentation"])[1:3, 4:7].all()


def test_parts_of_unequal_length_are_refused():
    with pytest.raises(AssertionError, match="as many"):
        Detections((8, 9), np.zeros((2, 4), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64), ())
