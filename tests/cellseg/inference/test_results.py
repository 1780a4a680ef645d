import json
import shutil
from dataclasses import replace

import pytest
import torch
from pycocotools.coco import COCO

from cellseg import predict
from cellseg.checkpoint import open_checkpoint
from cellseg.data.testset import read_test_list
from cellseg.errors import UserError
from cellseg.inference.results import check_results, write_results
from cellseg.model.build import build_model


@pytest.fixture
def checkpoint(tiny_config, tmp_path, save_untrained):
    """Untrained, but it finds a lot."""

    def make(**flat):
        config = tiny_config(**{"inference__score_threshold": 0.0} | flat)
        torch.manual_seed(0)
        model = build_model(config.model, config.inference, 4)
        return open_checkpoint(save_untrained(model, tmp_path / "best", config))

    return make


def with_ids(saved, category_ids):
    """A checkpoint whose classes had other numbers in the annotations."""
    return replace(saved, info=replace(saved.info, category_ids=category_ids))


@pytest.fixture
def root(synthetic_root, tmp_path):
    """A copy of the test images whose ids are not their places in the list."""
    copy = tmp_path / "data"
    shutil.copytree(synthetic_root / "test_release", copy / "test_release")
    entries = json.loads((synthetic_root / "test_image_name_to_ids.json").read_text())
    for entry in entries:
        entry["id"] += 40
    (copy / "test_image_name_to_ids.json").write_text(json.dumps(entries))
    return copy


def test_results_are_coco_records_of_the_listed_images(checkpoint, root, tmp_path):
    images, out, done = read_test_list(root), tmp_path / "deep" / "test-results.json", []
    count = write_results(checkpoint(), images, out, on_image=lambda n, of: done.append((n, of)))
    assert done == [(1, 2), (2, 2)]
    records = json.loads(out.read_text())
    assert len(records) == count == 40  # 20 detections for each image
    assert {record["image_id"] for record in records} == {41, 42}
    sizes = {image.image_id: [image.height, image.width] for image in images}
    for record in records:
        assert record.keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert record["segmentation"]["size"] == sizes[record["image_id"]]
        assert isinstance(record["segmentation"]["counts"], str)
        height, width = sizes[record["image_id"]]
        x, y, w, h = record["bbox"]
        assert min(x, y) >= 0 and min(w, h) > 0
        assert x + w <= width + 1e-3 and y + h <= height + 1e-3
    assert [path.name for path in out.parent.iterdir()] == ["test-results.json"]


def test_results_load_against_the_truth_with_pycocotools(checkpoint, synthetic_root, tmp_path):
    write_results(checkpoint(), read_test_list(synthetic_root), tmp_path / "out.json")
    truth = COCO(str(synthetic_root / "test_truth.json"))
    assert len(truth.loadRes(str(tmp_path / "out.json")).anns) == 40


def test_an_absent_image_is_left_out(checkpoint, root, tmp_path):
    next((root / "test_release").iterdir()).unlink()
    images = read_test_list(root)
    (present,) = (image for image in images if image.path is not None)
    assert write_results(checkpoint(), images, tmp_path / "out.json") == 20
    records = json.loads((tmp_path / "out.json").read_text())
    assert {record["image_id"] for record in records} == {present.image_id}


def test_no_image_at_all_is_an_error(checkpoint, root, tmp_path):
    shutil.rmtree(root / "test_release")
    with pytest.raises(UserError, match="needs test images, but none of the 2 listed ones is there"):
        write_results(checkpoint(), read_test_list(root), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_every_bad_image_is_told_and_nothing_is_written(checkpoint, root, tmp_path):
    first, second = read_test_list(root)
    assert second.path is not None
    second.path.write_bytes(second.path.read_bytes()[:50])
    images = [replace(first, height=first.height + 1), second]
    (tmp_path / "out.json").write_text("old")
    with pytest.raises(UserError) as raised:
        write_results(checkpoint(), images, tmp_path / "out.json")
    size, damaged = raised.value.problems
    assert f"must be {first.height + 1}x{first.width} as the test list says, but got {first.height}x" in size
    assert str(second.path) in damaged
    assert (tmp_path / "out.json").read_text() == "old"


def test_no_detections_are_a_legal_result(checkpoint, root, tmp_path):
    saved = checkpoint(inference__score_threshold=1.0)
    assert write_results(saved, read_test_list(root), tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_classes_are_written_with_the_ids_that_the_annotations_gave_them(checkpoint, root, tmp_path):
    images, plain, other = read_test_list(root), tmp_path / "plain.json", tmp_path / "other.json"
    saved = checkpoint()
    write_results(saved, images, plain)
    write_results(with_ids(saved, (0, 7, 9, 90)), images, other)
    labels = [record["category_id"] for record in json.loads(plain.read_text())]
    categories = [record["category_id"] for record in json.loads(other.read_text())]
    assert set(labels) <= {1, 2, 3, 4}
    assert categories == [(0, 7, 9, 90)[label - 1] for label in labels]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_id": 7}, "must be of a listed image and its size"),
        ({"segmentation": {"size": [3, 3], "counts": "9"}}, "must be of a listed image and its size"),
        ({"category_id": 1}, "must have a category of 0, 7, 9, 90 and a score, but got 1, "),
        ({"category_id": 91}, "must have a category of 0, 7, 9, 90 and a score"),
        ({"score": 1.5}, "must have a category of 0, 7, 9, 90 and a score"),
        ({"bbox": [0, 0, float("inf"), 1]}, "must have a finite box"),
    ],
)
def test_a_results_file_that_a_leaderboard_would_misread_is_refused(checkpoint, root, tmp_path, change, match):
    images, out = read_test_list(root), tmp_path / "out.json"
    write_results(with_ids(checkpoint(), (0, 7, 9, 90)), images, out)
    check_results(out, images, (0, 7, 9, 90))
    records = json.loads(out.read_text())
    records[0] |= change
    out.write_text(json.dumps(records))
    with pytest.raises(UserError, match=match):
        check_results(out, images, (0, 7, 9, 90))


# The command


def command(*argv) -> int:
    return predict.main([*map(str, argv), "--device", "cpu"])


def test_the_command_predicts_and_counts(checkpoint, root, tmp_path, capsys):
    assert command(checkpoint().folder, root, tmp_path / "out.json") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out.json'}: 40 detections on 2 images\n"


def test_the_command_says_which_image_is_missing(checkpoint, root, tmp_path, capsys):
    absent = sorted((root / "test_release").iterdir())[0]
    absent.unlink()
    assert command(checkpoint().folder, root, tmp_path / "out.json") == 0
    out = capsys.readouterr().out
    assert f"missing: 1 of 2 listed test images have no file: {absent.name}" in out
    assert "20 detections on 1 image" in out


def test_the_commands_errors_are_lines_and_leave_no_file(checkpoint, root, tmp_path, capsys):
    saved, out = checkpoint(), tmp_path / "out.json"
    for argv, problem in [
        ((tmp_path / "nowhere", root, out), "must be a checkpoint folder"),
        ((saved.folder, tmp_path / "nowhere", out), "test_image_name_to_ids.json: the file must exist"),
    ]:
        assert command(*argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert problem in err
    (saved.folder / saved.info.weights).write_bytes(b"")
    assert command(saved.folder, root, out) == 2
    assert "must be the file that checkpoint.json describes" in capsys.readouterr().err
    assert not out.exists()
