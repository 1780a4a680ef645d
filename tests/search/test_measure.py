"""What a study will cost, measured by an epoch of a few of its configs."""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from spacefiles import TINY_SPACE, parse

from cellseg.errors import UserError
from search.ablation import load_ablation
from search.diagnosis import epoch_cost
from search.diagnosis.epoch_cost import Measured, describe_measured_cost
from search.run import main

STARTS = "start_from:\n  - {optim.lr: 1e-3}\n  - {optim.lr: 2e-3}\n"


def files_below(folder: Path) -> set[str]:
    """What is in a folder, but for temporary folders that packages make for themselves when they are imported."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in names if not name.startswith(("tmp/torchinductor", "tmp/tmp"))}


@pytest.fixture
def tmp_folder(tmp_path, monkeypatch):
    """The system's folder of temporary files, and a cache, that a test can look into."""
    for name in ("tmp", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("CELLSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_an_epoch_of_each_start_config_is_measured_without_ray_and_nothing_stays(tmp_folder, monkeypatch, capsys):
    (tmp_folder / "tiny.yaml").write_text(TINY_SPACE + STARTS)
    monkeypatch.chdir(tmp_folder)
    monkeypatch.setitem(sys.modules, "ray", None)
    before = files_below(tmp_folder)
    assert main(["tiny.yaml", "--dry-run", "--measure", "--trials", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("measured: one epoch on the CPU, 10 images"))
    for place, line in enumerate(lines[at + 1 : at + 3], start=1):
        pattern = rf"  start config {place}: [\d.]+ s per epoch, [\d.]+ images/s, [\d.]+ GiB; [\d.]+ s to begin"
        assert re.fullmatch(pattern, line), line
    assert re.match(
        r"the study: about 12 epochs of [\d.]+ s and 9 beginnings of [\d.]+ s: [\d.e-]+ h of trials\.", lines[-1]
    )
    assert files_below(tmp_folder) == before
    assert os.environ["CELLSEG_CACHE"] == str(tmp_folder / "cache")


def test_data_that_the_cache_has_are_not_packed_again(tmp_folder, monkeypatch):
    from cellseg.data import packed
    from search.prepare import prepare_data

    space = parse(TINY_SPACE)
    root = prepare_data(space, None, tmp_folder / "results").root
    monkeypatch.setattr(packed, "pack", lambda *_: pytest.fail("packed again"))
    before = files_below(tmp_folder)
    lines = list(describe_measured_cost(space, root))
    assert len(lines) == 5, "three random configs"
    assert lines[1].startswith("  random config 1: ")
    assert files_below(tmp_folder) == before


def test_measure_belongs_to_a_dry_run(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY_SPACE)
    assert main([str(tmp_path / "tiny.yaml"), "--measure"]) == 2
    assert capsys.readouterr().err.startswith("error: --measure: belongs to --dry-run, but got a search.")


def test_without_data_it_is_an_error(tmp_path, capsys):
    text = TINY_SPACE.replace("data:\n  generate: {train: 10, test: 3, seed: 1, size: 64}\n", "")
    (tmp_path / "tiny.yaml").write_text(text)
    assert main([str(tmp_path / "tiny.yaml"), "--dry-run", "--measure"]) == 2
    assert "--data: a data set must be named" in capsys.readouterr().err
    assert main([str(tmp_path / "tiny.yaml"), "--dry-run", "--measure", "--data", str(tmp_path / "none")]) == 2


def test_a_config_that_cannot_train_is_said_and_the_others_count(monkeypatch):
    space = parse(TINY_SPACE + STARTS)
    monkeypatch.setattr(epoch_cost, "_data", lambda *_: ([1], Path("/data")))

    def measure(name, *_):
        if name == "start config 1":
            raise UserError("must fit, but got 80 GiB.")
        return Measured(name, 36.0, 0.0, 10.0, 2**30)

    monkeypatch.setattr(epoch_cost, "_measure", measure)
    lines = list(describe_measured_cost(space, None))
    assert lines[1] == "  start config 1: cannot train: must fit, but got 80 GiB."
    assert "about 4 epochs of 36.0 s and 3 beginnings of 0.0 s: 0.04 h of trials. On this machine" in lines[-1]


def test_if_none_can_train_it_is_an_error(monkeypatch):
    space = parse(TINY_SPACE + STARTS)
    monkeypatch.setattr(epoch_cost, "_data", lambda *_: ([1], Path("/data")))

    def measure(*_):
        raise UserError("must fit, but got 80 GiB.")

    monkeypatch.setattr(epoch_cost, "_measure", measure)
    with pytest.raises(UserError, match=r"start config 2: must fit, but got 80 GiB\."):
        list(describe_measured_cost(space, None))


def test_gpu_hours_are_those_of_the_share_that_a_trial_has(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(epoch_cost, "_data", lambda *_: ([1], Path("/data")))
    monkeypatch.setattr(epoch_cost, "_measure", lambda name, *_: Measured(name, 360.0, 0.0, 10.0, 2**30))
    text = TINY_SPACE.replace("resources: {cpu: 1}", "resources: {gpu: 0.5}\nlimits: {hours: 0.05}")
    lines = list(describe_measured_cost(parse(text.replace("trials: 3", "trials: 20")), None))
    assert lines[0] == "measured: one epoch on a GPU, 1 images, alone on this machine"
    # 20 trials to epoch 1, a third of them to epoch 2
    assert lines[-1] == (
        "the study: about 27 epochs of 360.0 s and 20 beginnings of 0.0 s: 2.67 h of trials, 1.33 h of GPUs. "
        "On this machine 40:00 min with 4 trials side by side; limits.hours ends it after 0.05 h."
    )


def test_trials_that_want_a_gpu_are_not_measured_without_one(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"--measure: trials must find here what resources asks for, but got gpu=1 and no"
    ):
        list(describe_measured_cost(parse(TINY_SPACE.replace("{cpu: 1}", "{gpu: 1}")), None))


def test_the_rows_of_an_ablation_are_measured_by_name(monkeypatch):
    ablation = load_ablation(Path(__file__).parents[2] / "spaces/reports/schedulers_anchors.yaml", ["resources.gpu=0"])
    monkeypatch.setattr(epoch_cost, "_data", lambda *_: ([1], Path("/data")))
    seen = []

    def measure(name, config, *_):
        seen.append((name, config.model.weights))
        return Measured(name, 1.0, 0.0, 10.0, 2**30)

    monkeypatch.setattr(epoch_cost, "_measure", measure)
    lines = list(describe_measured_cost(ablation, None))
    assert seen == [(f"row {name}", "none") for name in ablation.trained_rows[:3]]
    assert f"about {ablation.total_epochs:,} epochs" in lines[-1]
    assert epoch_cost._slots(SimpleNamespace(resources=None, max_slots=1, trials=5), SimpleNamespace(type="cpu")) == 1
