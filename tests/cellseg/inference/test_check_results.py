"""Results files of anybody's against a test list: what is wrong is said record by record."""

import json

import numpy as np
import pytest
import tifffile

from cellseg.data.rle import encode_window, to_json_rle
from cellseg.data.testset import TestImage
from cellseg.errors import UserError
from cellseg.inference.check_results import check_results_file
from cellseg.inference.results import write_masks

IMAGES = [TestImage("a.tif", 5, 20, 30, None), TestImage("b.tif", 9, 10, 10, None)]


def record(image_id=5, category_id=2, score=0.5, left=3, size=(20, 30), **more):
    rle = to_json_rle(encode_window(np.ones((4, 4), bool), 2, left, *size))
    return {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": rle} | more


def check(tmp_path, records, categories=(2, 4)):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(records))
    return check_results_file(path, IMAGES, categories)


def test_a_sound_file_is_summed_up(tmp_path):
    summary = check(tmp_path, [record(bbox=[3, 2, 4, 4]), record(left=9, score=1)])
    assert (summary.num_detections, summary.per_image, summary.without) == (2, (0, 1.0, 2), ("b.tif",))
    assert summary.describe()[0] == "2 detections, per image 0 to 2, median 1"
    assert check(tmp_path, []).num_detections == 0
    many = [record(score=0.5, left=left, category_id=4, size=(20, 30)) for left in range(26)]
    assert check(tmp_path, many).beyond_limit == 0


def test_more_detections_than_coco_counts_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("cellseg.inference.check_results.COCO_LIMIT", 1)
    assert check(tmp_path, [record(), record(left=9)]).beyond_limit == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("text", "record 0: must be a mapping, but got text"),
        ({"image_id": 5}, "got none of category_id, segmentation, score"),
        (record(image_id=6), "image_id must be one of the 2 listed images, but got 6"),
        (record(image_id=True), "image_id must be one of"),
        (record(image_id=[5]), "image_id must be one of"),
        (record(category_id=3), "category_id must be one of 2, 4, but got 3"),
        (record(score=1.5), "score must be between 0 and 1, but got 1.5"),
        (record(score="0.5"), "score must be between 0 and 1, but got '0.5'"),
        (record(score=float("nan")), "score must be between 0 and 1, but got nan"),
        (record(size=(30, 20)), r"must have the size \[20, 30\] of a.tif, but got \[30, 20\]"),
        (record(segmentation=[[1, 2, 3, 4, 5, 6]]), "segmentation must be an RLE"),
        (record(segmentation={"size": [20, 30], "counts": [600]}), "segmentation must be an RLE"),
        (record(segmentation={"size": [20, 30], "counts": "0"}), "must be whole and fill the image"),
        (record(segmentation={"size": [20, 30], "counts": "é"}), "must be whole and fill the image"),
        (record(segmentation=to_json_rle(encode_window(np.zeros((1, 1), bool), 0, 0, 20, 30))), "must have a pixel"),
        (record(bbox=[1, 2, None, 4]), "bbox must be four finite numbers"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, broken, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, [broken, record(left=9)])


def test_all_problems_are_reported_at_once_but_not_endlessly(tmp_path):
    with pytest.raises(UserError) as error:
        check(tmp_path, [record(score=2, category_id=7), record(), record()])
    assert len(error.value.problems) == 3
    assert "record 2: must be of another mask, image or class, but got those of record 1" in error.value.problems[2]
    with pytest.raises(UserError, match="more of this kind: 80 problems"):
        check(tmp_path, [record(score=2)] * 100)
    with pytest.raises(UserError, match="must be a list of records, but got a mapping"):
        check(tmp_path, {"annotations": []})


def test_without_known_categories_any_is_taken(tmp_path):
    assert check(tmp_path, [record(category_id=77)], None).num_detections == 1


def test_label_images_of_results_hold_the_likely_cells(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([record(score=0.9), record(left=5, score=0.8), record(left=20, score=0.3)]))
    images = [TestImage("a.tif", 5, 20, 30, tmp_path / "a.tif"), TestImage("b.tif", 9, 10, 10, tmp_path / "b.tif")]
    assert write_masks(path, images, tmp_path / "masks", 0.5) == 2
    labels_HW = tifffile.imread(tmp_path / "masks" / "a.tif")
    assert np.bincount(labels_HW.ravel()).tolist() == [600 - 24, 16, 8]
    assert not tifffile.imread(tmp_path / "masks" / "b.tif").any()
