"""A study's data and folder, new and continued."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import make_space, make_study

import search.prepare
from cellseg.cli import EXIT_USER_ERROR
from cellseg.data.synthetic import generate_dataset
from cellseg.errors import UserError
from search.prepare import cleared_if_refused, discarded_unless_started, open_study, prepare_data
from search.run import main
from search.space import Generate
from search.storage.find import check_name
from search.storage.lock import study_lock
from search.storage.store import StudyStore


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "cells"
    generate_dataset(folder, train=6, test=1, seed=0, size=64)
    return folder


@pytest.mark.parametrize("name", ["a", "quickstart", "my study", "v1.2_b-c+d", "Zellen_ä", "2026", "_x", "a" * 80])
def test_a_plain_name_is_fine(name):
    check_name(name)


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "../x", "a/b", "/abs", ".hidden", "a\\b", "a\nb", "-x", "generated", "a" * 81]
)
def test_a_name_that_is_no_plain_folder_is_refused(name):
    with pytest.raises(UserError, match="--study: must be 1 to 80 letters"):
        check_name(name)


def test_data_of_the_command_stand_over_the_spaces(root, tmp_path):
    space = make_space(data={"root": str(tmp_path / "nothing")})
    data = prepare_data(space, root, tmp_path)
    assert data.root == root
    assert len(data.packed) == 6
    with pytest.raises(UserError, match="nothing: the data folder must exist"):
        prepare_data(space, None, tmp_path)


def test_without_any_data_the_error_says_what_to_pass(tmp_path):
    with pytest.raises(UserError, match="--data: a data set must be named"):
        prepare_data(make_space(), None, tmp_path)


def test_cells_are_generated_once_and_their_folder_says_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = make_space(data={"generate": Generate(train=5, test=1, seed=3, size=64).model_dump()})
    first = prepare_data(space, None, tmp_path / "results")
    assert first.root == tmp_path / "results" / "generated" / "train5-test1-seed3-size64"
    before = (first.root / "test_truth.json").stat().st_mtime_ns
    again = prepare_data(space, None, (tmp_path / "results").relative_to(tmp_path))
    assert again.root == first.root
    assert (first.root / "test_truth.json").stat().st_mtime_ns == before


def test_too_few_images_for_the_folds_are_found_before_anything_starts(root, tmp_path):
    space = make_space(space={"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "data.num_folds": 7})
    with pytest.raises(UserError, match="each fold needs an image, but got 7 folds, 6 images"):
        prepare_data(space, root, tmp_path)


def test_a_new_study_describes_itself(root, tmp_path):
    space = make_space()
    study = open_study(space, "cells", tmp_path, prepare_data(space, root, tmp_path))
    described = json.loads((tmp_path / "cells" / "study.json").read_text())
    assert described["name"] == "cells"
    assert described["space_fingerprint"] == space.fingerprint
    assert described["data_root"] == str(root)
    assert described["class_names"] == ["class1", "class2", "class3", "class4"]
    assert {"torch", "ray", "optuna", "python"} <= described["versions"].keys()
    assert described["hardware"]["cpus"] == os.cpu_count()
    config = study.propose().config
    assert config["data.root"] == str(root)
    assert config["model.weights_folder"] == str(study.store.folder.parent / "pretrained")


def test_relative_results_do_not_move_with_the_working_directory(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = make_space()
    from pathlib import Path

    study = open_study(space, "cells", Path("results"), prepare_data(space, root, Path("results")))
    monkeypatch.chdir("/")
    study.propose()
    assert len(StudyStore.open(tmp_path / "results" / "cells").trials()) == 1


def test_a_study_is_continued_with_a_larger_target_other_keep_and_moved_data(root, tmp_path):
    space = make_space()
    study = open_study(space, "cells", tmp_path, prepare_data(space, root, tmp_path))
    created = study.store.study["created"]
    number = study.propose().number
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    larger = make_space(trials=50, keep=5)
    again = open_study(larger, "cells", tmp_path, prepare_data(larger, moved, tmp_path))
    assert [row.number for row in again.rows] == [number]
    described = again.store.study
    assert (described["space"]["trials"], described["data_root"]) == (50, str(moved))
    assert described["created"] == created


def test_another_space_or_other_data_are_refused_together(root, tmp_path):
    space = make_space()
    open_study(space, "cells", tmp_path, prepare_data(space, root, tmp_path))
    before = (tmp_path / "cells" / "study.json").read_bytes()
    other_data = tmp_path / "other"
    shutil.copytree(root, other_data)
    shutil.rmtree(sorted((other_data / "train").iterdir())[0])
    other_space = make_space(epochs=9)
    with pytest.raises(UserError) as caught:
        open_study(other_space, "cells", tmp_path, prepare_data(other_space, other_data, tmp_path))
    first, second = caught.value.problems
    assert "must continue with the space it started with" in first
    assert f"but got other images, masks or reading settings: data {root} -> {other_data}. Choose" in second
    assert (tmp_path / "cells" / "study.json").read_bytes() == before


def test_a_refused_continuation_names_what_differs_old_and_new(root, tmp_path):
    lr = {"low": 1e-4, "high": 1e-2, "log": True}
    keys = {"optim.lr": lr, "model.weights": "none"}
    space = make_space(space=keys)
    data = prepare_data(space, root, tmp_path)
    open_study(space, "cells", tmp_path, data)
    for changed, named in [
        (make_space(space=keys, seed=3), r"but got seed 0 -> 3: its trials"),
        (
            make_space(space=keys | {"optim.lr": lr | {"high": 0.1}}),
            r"but got space\.optim\.lr\.high 0\.01 -> 0\.1: its",
        ),
        (make_space(space=keys | {"model.norm": "group"}), r"but got space\.model\.norm nothing -> group: its"),
        (make_space(space=keys, asha=False), r"asha\.grace 1 -> nothing"),
    ]:
        with pytest.raises(UserError, match=named):
            open_study(changed, "cells", tmp_path, data)


def test_other_versions_are_noted_old_and_new_and_only_once(root, tmp_path, monkeypatch):
    space = make_space()
    data = prepare_data(space, root, tmp_path)
    notes: list[str] = []
    open_study(space, "cells", tmp_path, data, on_note=notes.append)
    open_study(space, "cells", tmp_path, data, on_note=notes.append)
    assert notes == []
    real = search.prepare.version
    monkeypatch.setattr(search.prepare, "version", lambda name: "9.9" if name == "ray" else real(name))
    for _ in range(2):
        open_study(space, "cells", tmp_path, data, on_note=notes.append)
    assert notes == [f"study 'cells' goes on with other versions than before: ray {real('ray')} -> 9.9"]
    described = json.loads((tmp_path / "cells" / "study.json").read_text())
    assert described["versions"]["ray"] == real("ray"), "those it started with"
    assert [part["versions"]["ray"] for part in described["continued"]] == ["9.9"]


def test_two_commands_cannot_have_one_study(tmp_path):
    with study_lock(tmp_path, "cells"):
        with (
            pytest.raises(UserError, match=rf"one command at a time may work on it, but process {os.getpid()} on"),
            study_lock(tmp_path, "cells"),
        ):
            pass
        with study_lock(tmp_path, "others"):
            pass
    with study_lock(tmp_path, "cells"):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    script = (
        "import os, pathlib, search.storage.lock\n"
        f"with search.storage.lock.study_lock(pathlib.Path({str(tmp_path)!r}), 'cells'): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 9
    assert (tmp_path / "cells" / ".lock").read_text().startswith("process ")
    with study_lock(tmp_path, "cells"):
        pass


def test_results_that_cannot_be_a_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/cells: the folder must be writable, but got 'Not a directory'"),
        study_lock(tmp_path / "file", "cells"),
    ):
        pass


class Refusal:
    """What may be in a new study's folder when a search is refused."""

    @staticmethod
    def nothing(folder):
        """The folder alone."""

    @staticmethod
    def tables(folder):
        StudyStore.create(folder, {"name": folder.name, "metric": "segm/AP50"})


@pytest.mark.parametrize("leave", [Refusal.nothing, Refusal.tables])
def test_a_study_that_is_refused_before_its_first_trial_leaves_no_folder(tmp_path, leave):
    with pytest.raises(UserError, match="refused"), study_lock(tmp_path, "a"), discarded_unless_started(tmp_path / "a"):
        leave(tmp_path / "a")
        raise UserError("refused")
    assert not (tmp_path / "a").exists()


def test_a_study_that_was_there_or_has_trials_stays(tmp_path):
    make_study(tmp_path, "old")
    with pytest.raises(UserError), study_lock(tmp_path, "old"), discarded_unless_started(tmp_path / "old"):
        raise UserError("refused")
    assert StudyStore.exists(tmp_path / "old")
    with pytest.raises(UserError), study_lock(tmp_path, "new"), discarded_unless_started(tmp_path / "new"):
        make_study(tmp_path, "new").propose()
        raise UserError("it failed later")
    assert len(StudyStore.open(tmp_path / "new").trials()) == 1


@pytest.mark.parametrize("address", ["ray://head:10001", "127.0.0.1:1", "::1:6379"])
def test_an_address_that_cannot_be_used_is_one_line_and_leaves_no_study(tmp_path, capsys, address):
    (tmp_path / "tiny.yaml").write_text(
        "metric: segm/AP50\ndirection: maximize\ntrials: 1\nepochs: 1\n"
        "data: {generate: {train: 5, test: 1, seed: 1, size: 64}}\n"
        "space: {model.weights: none, optim.lr: {low: 1e-4, high: 1e-2, log: true}}\n"
    )
    arguments = [str(tmp_path / "tiny.yaml"), "--results", str(tmp_path / "results"), "--address", address]
    assert main(arguments) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --address: ")
    assert not (tmp_path / "results").exists()


def refused(results: Path, **generate):
    """Prepare a study whose synthetic data cannot be split, as ``run`` does."""
    space = make_space(data={"generate": {"train": 3, "test": 1, "size": 64} | generate})
    with pytest.raises(UserError, match="each fold needs an image"), cleared_if_refused(results):
        prepare_data(space, None, results)


def test_a_refused_run_leaves_no_folder_behind(tmp_path):
    refused(tmp_path / "new" / "results")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_keeps_what_was_there(tmp_path):
    results = tmp_path / "results"
    (results / "generated" / "older").mkdir(parents=True)
    refused(results)
    assert [path.name for path in (results / "generated").iterdir()] == ["older"]
    (results / "study").mkdir()
    (results / "study" / "study.json").write_text("{}")  # of a search that runs at the same time, on these data
    refused(results, seed=5)
    assert len(list((results / "generated").iterdir())) == 2
