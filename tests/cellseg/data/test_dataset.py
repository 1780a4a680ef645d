import json
import threading
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from cellseg.config import DataConfig
from cellseg.data.dataset import open_dataset
from cellseg.data.source import in_threads
from cellseg.data.testset import TestImage, read_test_list
from cellseg.errors import UserError

ENTRY = {"file_name": "t0.tif", "id": 1, "height": 24, "width": 30}
COCO = {"images": [], "annotations": [], "categories": []}


def test_the_release_layout_is_found_by_itself(make_release):
    root = make_release(samples=3)
    (root / "test_truth.json").write_text(json.dumps(COCO))  # a COCO file beside it does not confuse
    dataset = open_dataset(DataConfig(root=str(root)))
    assert dataset.layout == "release"
    assert dataset.root == root.resolve()
    assert [source.name for source in dataset.sources] == ["s0", "s1", "s2"]
    assert dataset.settings == {"layout": "release", "instances": "ids"}
    assert {path.name for path in dataset.sources[0].files} == {"image.tif", "class1.tif", "class3.tif"}


def test_opening_reads_no_pixels(make_release):
    root = make_release()
    for path in root.rglob("*.tif"):
        path.write_bytes(b"no image")
    assert len(open_dataset(DataConfig(root=str(root))).sources) == 2


@pytest.mark.parametrize(
    ("settings", "files", "match"),
    [
        ({"root": None}, [], r"data\.root: .* Pass --data DIR\."),
        ({"root": "absent"}, [], "the data folder must exist"),
        ({}, [], r"must hold train/<id>/image\.tif .* annotations of a tool .*, but got neither"),
        ({"layout": "release"}, [], "must hold a folder per image, but got none"),
        ({"layout": "coco"}, [], "must hold one COCO annotation JSON .*, but got none"),
        ({}, ["a.json", "b.json"], r"but got a\.json, b\.json\. Name it with --annotations FILE \(data\.annotations"),
        ({"annotations": "absent.json"}, [], r"absent\.json: the file must exist"),
        ({"layout": "release", "annotations": "a.json"}, [], r"data\.annotations: belongs to the COCO layout"),
        ({"instances": "components"}, ["a.json"], r"data\.instances: belongs to layouts with mask images"),
    ],
)
def test_a_data_set_that_cannot_be_opened_is_explained(tmp_path, settings, files, match):
    for name in files:
        (tmp_path / name).write_text(json.dumps(COCO))
    settings = {"root": ".", **settings}
    root = settings.pop("root")
    with pytest.raises(UserError, match=match):
        open_dataset(DataConfig(root=None if root is None else str(tmp_path / root), **settings))


def test_the_test_list_keeps_its_order_and_finds_its_files(make_release):
    root = make_release(test_images=3)
    (root / "test_release" / "t1.tif").rename(root / "test_release" / "t1.TIF")
    (root / "test_release" / "t2.tif").unlink()
    images = read_test_list(root)
    assert [image.image_id for image in images] == [1, 2, 3]
    assert [image.path and image.path.name for image in images] == ["t0.tif", "t1.TIF", None]
    assert images[0] == TestImage("t0.tif", 1, 24, 30, root / "test_release" / "t0.tif")


def test_without_a_test_folder_every_test_image_is_absent(tmp_path):
    (tmp_path / "test_image_name_to_ids.json").write_text(json.dumps([ENTRY]))
    assert [image.path for image in read_test_list(tmp_path)] == [None]


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        ("nonsense", ["must be valid JSON"]),
        ({"a": 1}, ["must be a list"]),
        ([], ["must be a list .* with entries"]),
        ([ENTRY, 3], ["entry 1: must be a mapping with file_name, id, height and width, but got 3"]),
        ([{**ENTRY, "id": "1"}], ["entry 0: id must be a whole number of at least 0, but got '1'"]),
        ([{**ENTRY, "id": True}], ["entry 0: id must be a whole number"]),
        (
            [{"file_name": "", "id": 1, "height": 0}],
            ["file_name must be a string", "height must be .* at least 1, but got 0", "width must be .*, but got None"],
        ),
        ([ENTRY, {**ENTRY, "id": 2}], [r"file_name must be unique, but got 't0\.tif' 2 times"]),
        ([ENTRY, {**ENTRY, "file_name": "b.tif"}], ["id must be unique, but got 1 2 times"]),
    ],
)
def test_a_malformed_test_list_is_explained(tmp_path, content, problems):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "test_image_name_to_ids.json").write_text(text)
    with pytest.raises(UserError) as caught:
        read_test_list(tmp_path)
    assert len(caught.value.problems) == len(problems)
    for problem, match in zip(caught.value.problems, problems, strict=True):
        with pytest.raises(UserError, match=match):
            raise UserError(problem)


def test_a_missing_test_list_is_explained(tmp_path):
    with pytest.raises(UserError, match=r"test_image_name_to_ids\.json: the file must exist"):
        read_test_list(tmp_path)


def test_the_released_test_list_has_101_images(shared_data: Path):
    images = read_test_list(shared_data / "hw3-sample")
    assert len(images) == 101
    assert all(image.path is None for image in images)


def test_threads_keep_the_order_and_put_user_errors_in_place_of_results():
    def work(number: int) -> int:
        if number % 4 == 3:
            raise UserError(f"{number}: bad")
        return number * 10

    progress = []
    results = list(in_threads(work, list(range(8)), lambda done, total: progress.append((done, total))))
    assert [item for item, _ in results] == list(range(8))
    assert [str(r) if isinstance(r, UserError) else r for _, r in results] == [
        0,
        10,
        20,
        "3: bad",
        40,
        50,
        60,
        "7: bad",
    ]
    assert progress == [(done, 8) for done in range(1, 9)]
    assert list(in_threads(work, [])) == []


def test_threads_do_not_run_ahead_of_a_slow_consumer():
    started, lock = [], threading.Lock()

    def work(number: int) -> np.ndarray:
        with lock:
            started.append(number)
        return np.zeros(1)

    results = in_threads(work, list(range(10_000)))
    next(results)
    assert isinstance(results, Generator)
    results.close()
    assert len(started) < 2000


def test_a_bug_in_the_work_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [1, 0]))
