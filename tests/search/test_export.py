"""From the best trial to the file a leaderboard takes."""

import contextlib
import io
import json
import shutil
import zipfile

import pytest
from fakes import finish, make_report, make_study, told
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg.errors import UserError
from search.export import main
from search.storage.kept import choose_trial
from search.storage.store import StudyStore

pytestmark = pytest.mark.timeout(500)


def export(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def results(searched):
    return searched.folder / "results"


def test_the_export_of_the_best_trial_is_a_valid_results_file(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export("--best", "--results", results, "--zip", "--device", "cpu") == 0
    out, err = capsys.readouterr()
    best = StudyStore.open(results / "tiny cells").best_trials(1)[0]
    assert out.startswith(f"study tiny cells, trial t{best.number:04d}: validation segm/AP50 {best.metric:.4f}")
    assert err == ""
    assert {path.name for path in tmp_path.iterdir()} == {"test-results.json", "test-results.zip"}

    records = json.loads((tmp_path / "test-results.json").read_text())
    data = next((results / "generated").iterdir())
    sizes = {entry["id"]: entry for entry in json.loads((data / "test_image_name_to_ids.json").read_text())}
    assert f"test-results.json: {len(records)} detections on 3 images" in out
    for record in records:
        image = sizes[record["image_id"]]
        assert record["segmentation"]["size"] == [image["height"], image["width"]]
        assert isinstance(record["segmentation"]["counts"], str)
        x, y, width, height = record["bbox"]
        assert x >= 0 and y >= 0 and x + width <= image["width"] + 0.01 and y + height <= image["height"] + 0.01
        assert 1 <= record["category_id"] <= 4
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data / "test_truth.json"))
        if records:
            evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "test-results.json")), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert 0 <= evaluation.stats[1] <= 1
    with zipfile.ZipFile(tmp_path / "test-results.zip") as archive:
        assert archive.namelist() == ["test-results.json"]
        assert json.loads(archive.read("test-results.json")) == records


def test_the_same_trial_by_number_and_study_by_name_give_the_same_file(results, tmp_path):
    best = StudyStore.open(results / "tiny cells").best_trials(1)[0]
    assert export("--best", "--results", results, "--out", tmp_path / "a.json", "--device", "cpu") == 0
    by_number = ("--trial", best.number, "--study", "tiny cells", "--results", results, "--out", tmp_path / "b.json")
    assert export(*by_number, "--device", "cpu") == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_absent_test_images_are_named_and_the_others_exported(results, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(next((results / "generated").iterdir()), data)
    absent = sorted((data / "test_release").iterdir())[1]
    absent.unlink()
    arguments = ("--best", "--results", results, "--data", data, "--out", tmp_path / "out.json", "--device", "cpu")
    assert export(*arguments) == 0
    out = capsys.readouterr().out
    assert f"missing: 1 of 3 listed test images have no file: {absent.name}" in out
    ids = {record["image_id"] for record in json.loads((tmp_path / "out.json").read_text())}
    assert ids <= {1, 3}


def test_the_best_trial_is_the_one_with_the_highest_value_however_it_ended(tmp_path):
    study = make_study(tmp_path)
    for value, ending in ((0.2, "epochs"), (0.6, "pruned"), (0.4, "non-finite")):
        number = study.propose().number
        study.report(number, make_report(1, value, ending=told(ending)))
        best = study.store.checkpoint_folder(number) / "best"
        best.mkdir(parents=True)
        (best / "checkpoint.json").write_text("{}")
        finish(study, number, ending)
    assert choose_trial(study.store, None).number == 1
    assert choose_trial(study.store, 2).number == 2
    with pytest.raises(UserError, match=r"trial 0: its checkpoint must have been kept, but got those of \[1, 2\]"):
        choose_trial(study.store, 0)
    with pytest.raises(UserError, match="must hold a trial 7, but got none"):
        choose_trial(study.store, 7)


def test_a_study_without_values_has_no_best_trial(tmp_path):
    with pytest.raises(UserError, match="must hold a trial with a value, but got none"):
        choose_trial(make_study(tmp_path).store, None)


@pytest.fixture
def generated(tmp_path):
    from cellseg.data.synthetic import generate_dataset

    generate_dataset(tmp_path / "data", train=2, test=2, seed=0, size=64)
    return tmp_path / "data"


def test_any_results_file_is_checked_against_the_listed_images(generated, tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text("[]")
    assert export("--check", file, "--data", generated) == 0
    out = capsys.readouterr().out
    assert "0 detections, per image 0 to 0" in out and "valid for the 2 listed test images" in out
    record = {"image_id": 1, "category_id": 9, "score": 2, "segmentation": {"size": [1, 1], "counts": "1"}}
    file.write_text(json.dumps([record]))
    assert export("--check", file, "--data", generated) == 2
    err = capsys.readouterr().err
    assert "category_id must be one of" in err and "but got 9" in err and "score must be between 0 and 1" in err
    shutil.rmtree(generated / "train")
    (generated / "test_truth.json").unlink()
    assert export("--check", file, "--data", generated) == 2
    assert "any category id is taken" in capsys.readouterr().out


def test_a_file_is_checked_with_the_data_of_the_latest_study(generated, tmp_path, capsys):
    study = make_study(tmp_path / "results")
    study.store.write_study(study.store.study | {"data_root": str(generated)})
    study.propose()
    study.store.flush()
    (tmp_path / "mine.json").write_text("[]")
    assert export("--check", tmp_path / "mine.json", "--results", tmp_path / "results") == 0
    assert f"listed test images of {generated}" in capsys.readouterr().out
