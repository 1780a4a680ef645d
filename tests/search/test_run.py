"""The command as people run it: from a space file to results, interrupted, killed and continued."""

import json
import shutil
import signal
from types import SimpleNamespace

import pytest
from searches import Search

from cellseg.checkpoint import open_checkpoint
from cellseg.cli import EXIT_INTERRUPTED
from search.run import _next_command, main
from search.storage.store import StudyStore

pytestmark = pytest.mark.timeout(500)


def store_of(place) -> StudyStore:
    return StudyStore.open(place.folder / "results" / "tiny cells")


def test_a_search_begins_with_the_dashboard_and_ends_with_the_next_command(searched):
    lines = searched.output.splitlines()
    assert lines[0].startswith("Ray dashboard: http://127.0.0.1:")
    assert lines[1] == "maximize segm/AP50: 3 trials of 2 epochs, seed 0"
    best = store_of(searched).best_trials(1)[0]
    assert f"Best: trial t{best.number:04d}, validation segm/AP50 {best.metric:.4f}" in searched.output
    assert lines[-1] == "Next: python -m search.export --best --study 'tiny cells'"
    assert sum(line.startswith("t000") for line in lines) >= 6, "in a log, a line for what happened"


def test_a_search_leaves_its_tables_and_the_best_checkpoint_and_nothing_else(searched):
    folder = searched.folder / "results" / "tiny cells"
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "best.yaml",
        "study.json",
        "trials.parquet",
        "epochs",
        "backup",
        "checkpoints",
        "logs",
        "overlays",
        "report.html",
        "tensorboard",
        "validation",
    }
    assert json.loads((folder / "study.json").read_text())["name"] == "tiny cells"
    store = store_of(searched)
    assert f"TensorBoard files: tensorboard --logdir {folder / 'tensorboard'}\n" in searched.output
    assert {path.name for path in (folder / "tensorboard").glob("t*")} == {"t0000", "t0001", "t0002"}
    assert set((folder / "tensorboard" / "ended").read_text().split()) == {"0", "1", "2"}
    assert [row.number for row in store.trials()] == [0, 1, 2]
    assert {row.state for row in store.trials()} <= {"COMPLETE", "PRUNED"}
    assert all(row.metric is not None and row.node and row.parameters for row in store.trials())
    assert [row.epoch for row in store.epochs() if row.trial == 0] == list(range(1, store.trials()[0].epochs + 1))
    best = store.best_trials(1)[0]
    assert [path.relative_to(folder).as_posix() for path in folder.glob("checkpoints/*/*")] == [
        f"checkpoints/t{best.number:04d}/best"
    ]
    info = open_checkpoint(store.checkpoint_folder(best.number) / "best").info
    assert (info.value, info.epoch) == (best.metric, best.best_epoch)
    assert {path.name for path in searched.folder.iterdir()} == {"tiny cells.yaml", "results"}


@pytest.mark.parametrize(("has_list", "has_images"), [(True, True), (True, False), (False, False)])
def test_the_next_command_is_one_that_the_data_allow(tmp_path, has_list, has_images):
    study = SimpleNamespace(name="my cells", store=SimpleNamespace(study={"data_root": str(tmp_path)}))
    if has_list:
        entry = {"file_name": "a.png", "id": 1, "height": 4, "width": 4}
        (tmp_path / "test_image_name_to_ids.json").write_text(json.dumps([entry]))
    if has_images:
        (tmp_path / "test_release").mkdir()
        (tmp_path / "test_release" / "a.png").touch()
    export = "python -m search.export --best --study 'my cells'"
    predict = "python -m search.commands.predict 'my cells' IMAGES --to labels,overlay --out predictions"
    assert _next_command(study) == (export if has_images else predict)


def test_overlays_show_the_validation_images(searched):
    pictures = list((searched.folder / "results" / "tiny cells" / "overlays").iterdir())
    images = {folder.name for folder in (searched.folder / "results" / "generated").glob("*/train/*")}
    assert 1 <= len(pictures) < 5
    assert {picture.stem for picture in pictures} < images
    assert all(picture.suffix == ".png" and picture.read_bytes()[:4] == b"\x89PNG" for picture in pictures)


def test_the_same_command_again_trains_nothing(searched, capsys, monkeypatch):
    monkeypatch.chdir(searched.folder)
    before = store_of(searched).trials()
    assert main(["tiny cells.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("study 'tiny cells' has finished its 3 trials; run more with --trials N\n")
    assert "dashboard" not in out
    assert err == ""
    assert store_of(searched).trials() == before


def test_a_finished_study_makes_a_copy_for_trackers_again(searched, tmp_path, capsys, monkeypatch):
    shutil.copytree(searched.folder, tmp_path / "copy")
    folder = tmp_path / "copy" / "results" / "tiny cells" / "tensorboard"
    shutil.rmtree(folder)
    monkeypatch.chdir(tmp_path / "copy")
    assert main(["tiny cells.yaml"]) == 0
    assert capsys.readouterr().err == ""
    assert {path.name for path in folder.iterdir()} == {"ended", "t0000", "t0001", "t0002"}
    assert all(any(run.iterdir()) for run in folder.glob("t*"))


def test_a_study_that_reached_a_limit_says_which_and_how_to_go_on(searched, tmp_path, capsys, monkeypatch):
    shutil.copytree(searched.folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    arguments = ["tiny cells.yaml", "--set", "limits.target=0"]
    ended = "study 'tiny cells' ended by limits.target: segm/AP50 reached "
    assert main([*arguments, "--trials", "9"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(ended)
    assert first.endswith(", target 0; continue with --set limits.target=N")
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "study 'tiny cells' has finished its 3 trials; run more with --trials N"
    assert lines[1].startswith(ended)
    assert lines[-1] == "Next: python -m search.export --best --study 'tiny cells'"


def test_after_a_search_its_front_of_metric_and_cost_is_told(searched):
    complete = [row for row in store_of(searched).trials() if row.state == "COMPLETE"]
    assert complete
    assert "Pareto front of fully trained trials: no other is as good in both segm/AP50" in searched.output
    assert all(row.seconds_per_epoch for row in store_of(searched).trials())


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_says_how_to_go_on_and_does(workplace, sent):
    search = Search(workplace, "--epochs", "4")
    search.wait_for("epoch 1/4")
    assert search.end(sent) == EXIT_INTERRUPTED, search.output.read_text()
    again = "python -m search.run 'tiny cells.yaml' --epochs 4"
    assert f"Stopped. {again} continues where it was." in search.output.read_text()
    assert "Traceback" not in search.output.read_text()
    assert search.left_over() == []
    interrupted = {row.number: row for row in store_of(workplace).trials()}
    assert "INTERRUPTED" in {row.state for row in interrupted.values()}
    assert "RUNNING" not in {row.state for row in interrupted.values()}

    done = workplace.run("search.run", "tiny cells.yaml", "--epochs", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = store_of(workplace).trials()
    assert [row.number for row in rows] == [0, 1, 2]
    assert {row.state for row in rows} <= {"COMPLETE", "PRUNED"}
    for number, row in interrupted.items():
        assert rows[number].config == row.config
        assert rows[number].epochs >= row.epochs
        epochs = [epoch.epoch for epoch in store_of(workplace).epochs(number)]
        assert epochs == list(range(1, rows[number].epochs + 1)), "no epoch is missing or double"


@pytest.mark.slow
def test_a_killed_search_leaves_no_processes_and_goes_on(workplace):
    search = Search(workplace, "--epochs", "4")
    search.wait_for("epoch 1/4")
    assert search.end(signal.SIGKILL) == -signal.SIGKILL
    assert search.left_over() == []
    assert "RUNNING" in {row.state for row in store_of(workplace).trials()}, "it could not say goodbye"

    done = workplace.run("search.run", "tiny cells.yaml", "--epochs", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = store_of(workplace).trials()
    assert [row.number for row in rows] == [0, 1, 2]
    assert {row.state for row in rows} <= {"COMPLETE", "PRUNED"}
    for row in rows:
        assert [epoch.epoch for epoch in store_of(workplace).epochs(row.number)] == list(range(1, row.epochs + 1))


@pytest.mark.slow
def test_a_second_command_on_a_running_study_is_refused_and_more_trials_continue_it(workplace):
    search = Search(workplace)
    search.wait_for("running")
    second = workplace.run("search.run", "tiny cells.yaml")
    assert second.returncode == 2
    assert second.stderr.startswith("error: study 'tiny cells': one command at a time may work on it, but process ")
    assert search.process.wait(400) == 0
    before = store_of(workplace).trials()
    more = workplace.run("search.run", "tiny cells.yaml", "--trials", "4")
    assert more.returncode == 0, more.stdout + more.stderr
    rows = store_of(workplace).trials()
    assert rows[:3] == before
    assert [row.number for row in rows] == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_an_address_without_a_cluster_is_one_clear_line(workplace, address):
    done = workplace.run("search.run", "tiny cells.yaml", "--address", address)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: --address: a Ray cluster must answer at '{address}', but got")
    assert "Traceback" not in done.stderr
