"""``python -m cellseg.train``: what it takes, says, refuses and leaves behind."""

import itertools
import shutil

import pytest
import yaml

from cellseg import train
from cellseg.checkpoint import open_checkpoint
from cellseg.training import run as training
from cellseg.training.epoch_report import TrainingError


@pytest.fixture
def command(synthetic_root, tmp_path, monkeypatch):
    """Runs ``python -m cellseg.train`` in this process on a config file made of nested settings."""
    monkeypatch.setenv("CELLSEG_CACHE", str(tmp_path / "cache"))
    counter = itertools.count()

    def run_it(settings, *argv: str) -> int:
        path = tmp_path / f"config{next(counter)}.yaml"
        path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
        out = str(tmp_path / "out")
        return train.main([str(path), "--data", str(synthetic_root), "--out", out, "--device", "cpu", *argv])

    return run_it


def test_the_command_trains_and_says_where_the_best_checkpoint_is(command, tiny_config, tmp_path, capsys):
    assert command(tiny_config().to_flat(), "--set", "train.epochs=1") == 0
    out = capsys.readouterr().out
    assert "8 images of 4 classes, cpu, checkpoints in" in out
    assert "epoch   1  loss " in out
    assert out.replace("\n", "").endswith(f"in epoch 1, {tmp_path / 'out' / 'best'}")
    assert open_checkpoint(tmp_path / "out/best").info.epoch == 1
    assert command(tiny_config().to_flat(), "--set", "train.epochs=1") == 0
    assert "is already trained to the end" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize(("frozen", "notes"), [(0, 0), (2, 1)])
def test_frozen_random_stages_are_noted(command, tiny_config, monkeypatch, capsys, frozen, notes):
    monkeypatch.setattr("cellseg.training.fit.fit", lambda *_, **__: iter(()))
    assert command(tiny_config(model__frozen_stages=frozen).to_flat()) == 0
    note = "note: the first 2 stages stay random numbers: model.weights=none"
    assert capsys.readouterr().out.count(note) == notes


def test_the_command_takes_every_way_of_training(command, tiny_config, tmp_path, capsys):
    settings = {
        "train.metric": "loss/validation",
        "train.stop_after_decays": 2,
        "data.train_on": "all",
        "loss.dice": 0.5,
        "loss.objectness": 0.0,
        "optim.optimizer": "sgd",
        "optim.schedule": "plateau",
        "optim.warmup_epochs": 1,
        "optim.plateau_watch": "training-loss",
        "optim.decay_on": "weights",
        "optim.backbone_lr_factor": 0.1,
        "optim.accumulate_batches": 2,
        "optim.ema_decay": 0.9,
    }
    assert command(tiny_config().to_flat() | settings, "--set", "train.epochs=1") == 0
    out = capsys.readouterr().out
    value = open_checkpoint(tmp_path / "out/best").info.value
    assert f"loss/validation {value:.4f}" in out
    assert f"best: loss/validation {value:.4f} in epoch 1" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("settings", "argv", "problems"),
    [
        (
            {"optim": {"lr": -1, "lrr": 1}},
            [],
            ["optim.lrr: must be a config field", "optim.lr: must be greater than 0"],
        ),
        ({}, ["--set", "optim.lr=x"], ["optim.lr: must be a valid number, but got 'x'"]),
        ({}, ["--set", "optim.lr"], ["--set: must be KEY=VALUE, but got 'optim.lr'"]),
        ("a: [1", [], ["must be valid YAML"]),
        ("- 1", [], ["must be a mapping of settings, but got list"]),
        ({}, ["--data", "/nowhere/at/all"], ["/nowhere/at/all"]),
        ({}, ["--device", "gpu"], ["--device: must be a device of this machine, but got 'gpu'"]),
        ({"data": {"num_folds": 9}, "model": {"weights": "none"}}, [], ["data.num_folds: each fold needs an image"]),
        ({"model": {"weights": "nowhere.pt"}}, [], ["model.weights: must be none, imagenet, coco, a file"]),
        ({"model": {"weights": "none", "max_trainable": 5}}, [], ["model.max_trainable: at most 5 trainable"]),
    ],
)
def test_a_bad_input_is_one_line_a_problem_and_leaves_nothing(command, tmp_path, capsys, settings, argv, problems):
    small = {"model.backbone": "resnet10t", "model.weights": "none"}
    if isinstance(settings, dict) and "model" not in settings:
        settings = small | settings
    elif isinstance(settings, dict):
        settings = settings | {"model.backbone": "resnet10t"}
    assert command(settings, *argv) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith("error: ")
        assert problem in line
    assert not (tmp_path / "out").exists()


def test_a_run_that_cannot_go_on_is_told_with_a_remedy(command, tiny_config, capsys, monkeypatch):
    def explode(*_):
        raise TrainingError("non-finite", "loss_mask in epoch 1")

    monkeypatch.setattr(training.TrainingRun, "train_epoch", explode)
    assert command(tiny_config().to_flat()) == 2
    err = capsys.readouterr().err
    assert "training ended with non-finite: loss_mask in epoch 1. Lower optim.lr" in err


def test_a_folder_that_cannot_be_written_is_told(command, tiny_config, tmp_path, capsys, without_training, scripted):
    scripted(0.1, 0.2)
    (tmp_path / "out").write_text("a file, not a folder")
    assert command(tiny_config().to_flat()) == 2
    assert "the folder must be writable" in capsys.readouterr().err


def test_all_images_train_without_a_metric(command, tiny_config, tmp_path, capsys):
    settings = tiny_config(train__patience=1).to_flat()
    assert command(settings, "--all-images", "--set", "train.epochs=1") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "note: train.patience has no effect without validation" in out
    assert "trained on 8 images, all there are, epoch 1" in out and "segm" not in out
    assert open_checkpoint(tmp_path / "out/best").config.data.train_on == "unvalidated"


def test_the_best_config_of_a_study_goes_by_the_studys_name(tiny_config, monkeypatch, synthetic_root, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLSEG_CACHE", str(tmp_path / "cache"))
    runs = []
    monkeypatch.setattr(
        "cellseg.training.fit.fit", lambda config, data, out, **_: iter(runs.append((config, out)) or ())
    )
    study = tmp_path / "results" / "mine"
    study.mkdir(parents=True)
    nested = {}
    for key, value in tiny_config(data__root=str(synthetic_root)).to_flat().items():
        nested.setdefault(key.split(".")[0], {})[key.split(".")[1]] = value
    assert train.main(["--from-study", "mine"]) == 2
    assert "must be a study with a result, but got no best config" in capsys.readouterr().err
    (study / "best.yaml").write_text(yaml.safe_dump(nested))
    assert train.main(["--from-study", "mine", "--device", "cpu"]) == 0
    assert train.main(["results/mine/best.yaml", "--device", "cpu"]) == 0
    assert [str(out) for _, out in runs] == ["results/train-mine"] * 2
    assert runs[0][0] == runs[1][0] == tiny_config(data__root=str(synthetic_root))
    for words in ([], ["results/mine/best.yaml", "--from-study", "mine"], ["--from-study", "absent"]):
        assert train.main(words) == 2
    err = capsys.readouterr().err
    assert "but got neither" in err and "but got both" in err and "but got no such folder" in err


def test_flat_and_nested_settings_are_read_and_refused_alike(command, capsys):
    problems = []
    for settings in ({"optim.lr": -1, "optim.lrr": 1}, {"optim": {"lr": -1, "lrr": 1}}):
        assert command(settings) == 2
        problems.append([line.split(": ", 2)[2] for line in capsys.readouterr().err.splitlines()])
    assert problems[0] == problems[1] and len(problems[0]) == 2
