import itertools
import math
import shutil
from dataclasses import asdict

import pytest
import torch

from cellseg.checkpoint import has_checkpoint, open_checkpoint
from cellseg.config import METRICS
from cellseg.data.packed import PackedDataset
from cellseg.data.split import Split
from cellseg.errors import UserError
from cellseg.inference.image import load_model
from cellseg.owners import SupersededError
from cellseg.training import run as training
from cellseg.training import validation
from cellseg.training.epoch_report import EpochReport, TrainingError
from cellseg.training.fit import fit

CPU = torch.device("cpu")
TIMES = ("seconds", "images_per_second", "peak_memory_bytes")


def run(config, packed, folder) -> list[EpochReport]:
    return list(fit(config, packed, folder, device=CPU))


def numbers(reports) -> list[dict]:
    """The reports without what depends on the clock."""
    return [{key: value for key, value in asdict(report).items() if key not in TIMES} for report in reports]


def weights_in(folder) -> dict[str, torch.Tensor]:
    return open_checkpoint(folder).load_weights()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_epoch_is_a_report_of_finite_numbers(packed, tiny_config, tmp_path):
    reports = run(tiny_config(), packed, tmp_path)
    assert [report.epoch for report in reports] == [1, 2]
    assert [report.ending for report in reports] == [None, "epochs"]
    for report in reports:
        parts = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
        assert set(report.losses) == {*parts, "loss_dice", "loss"}
        assert report.losses["loss"] == pytest.approx(sum(report.losses[name] for name in parts))
        assert all(math.isfinite(value) for value in report.losses.values())
        assert {*METRICS, "count/detections", "count/cells"} <= set(report.metrics)
        assert all(math.isfinite(value) for value in report.metrics.values())
        assert report.value == report.metrics["segm/AP50"]
        assert report.seconds > 0 and report.images_per_second > 0 and report.peak_memory_bytes > 0
    assert reports[0].losses["loss"] > reports[1].losses["loss"]
    assert reports[0].learning_rate > reports[1].learning_rate > 0


def test_the_same_seed_gives_the_same_run_and_another_seed_another(packed, tiny_config, tmp_path):
    config = tiny_config(train__epochs=1)
    one, same_seed = run(config, packed, tmp_path / "1"), run(config, packed, tmp_path / "2")
    assert numbers(one) == numbers(same_seed)
    assert same(weights_in(tmp_path / "1/last"), weights_in(tmp_path / "2/last"))
    other = run(config.replace(train__seed=1), packed, tmp_path / "3")
    assert other[0].losses["loss"] != one[0].losses["loss"]


def test_the_number_of_loader_processes_changes_nothing(packed, tiny_config, tmp_path):
    config = tiny_config(train__epochs=1)
    alone = run(config, packed, tmp_path / "1")
    assert numbers(run(config.replace(train__workers=2), packed, tmp_path / "2")) == numbers(alone)


GROUPS = {"optim__decay_on": "weights", "optim__backbone_lr_factor": 0.5}
PLATEAU = {"optim__schedule": "plateau", "optim__plateau_patience": 1, "optim__plateau_factor": 0.5}


@pytest.mark.parametrize(
    ("epochs", "killed_after", "settings"),
    [
        (2, 1, {"optim__optimizer": "sgd"}),
        (2, 1, {"optim__optimizer": "adamw"}),
        (3, 2, PLATEAU | GROUPS | {"optim__ema_decay": 0.8, "optim__accumulate_batches": 2, "train__batch_size": 2}),
    ],
    ids=["sgd", "adamw", "plateau-ema-accumulation"],
)
def test_a_run_killed_after_an_epoch_goes_on_as_if_nothing_had_happened(
    packed, tiny_config, tmp_path, epochs, killed_after, settings
):
    config = tiny_config(train__epochs=epochs, augment__preset="full", **settings)
    whole = run(config, packed, tmp_path / "whole")
    if config.optim.schedule == "plateau":  # two epochs without a detection: the third's rate looks back on both
        assert [report.learning_rate for report in whole] == [1e-3, 1e-3, 5e-4]
    killed = fit(config, packed, tmp_path / "killed", device=CPU)
    before = list(itertools.islice(killed, killed_after))
    killed.close()
    torch.rand(99)  # another process has another random state
    after = run(config, packed, tmp_path / "killed")
    assert numbers(before + after) == numbers(whole)
    for folder in ("last", "best"):
        assert same(weights_in(tmp_path / "killed" / folder), weights_in(tmp_path / "whole" / folder))
    states = [open_checkpoint(tmp_path / name / "last").load_training() for name in ("killed", "whole")]
    reports = [state.pop("reports") for state in states]  # they tell times
    assert [report["epoch"] for report in reports[0]] == [report["epoch"] for report in reports[1]]
    assert str(states[0]) == str(states[1])
    assert states[0]["model"] is states[1]["model"] is None or same(states[0]["model"], states[1]["model"])


@pytest.mark.parametrize("unsaved", ["best", "last"])
def test_a_run_killed_while_saving_goes_on_from_the_epoch_before(
    packed, tiny_config, tmp_path, monkeypatch, scripted, unsaved
):
    config = tiny_config(train__epochs=2)
    whole = run(config, packed, tmp_path / "whole")
    original = training.save_checkpoint

    def killed(folder, *arguments, **keywords):
        if keywords["epoch"] == 2 and folder.name == unsaved:
            raise KeyboardInterrupt
        original(folder, *arguments, **keywords)

    monkeypatch.setattr(training, "save_checkpoint", killed)
    scripted(0.1, 0.2)  # the best epoch is to be the second, so that both folders are written in it
    with pytest.raises(KeyboardInterrupt):
        run(config, packed, tmp_path / "killed")
    monkeypatch.setattr(training, "save_checkpoint", original)
    (report,) = run(config, packed, tmp_path / "killed")
    assert (report.epoch, report.best_epoch) == (2, 2)
    assert report.losses == whole[1].losses
    for folder in ("last", "best"):
        assert open_checkpoint(tmp_path / "killed" / folder).info.epoch == 2
        assert same(weights_in(tmp_path / "killed" / folder), weights_in(tmp_path / "whole/last"))


def test_a_finished_run_has_nothing_to_report(packed, tiny_config, tmp_path, scripted, without_training):
    scripted(0.1, 0.2)
    assert len(run(tiny_config(), packed, tmp_path)) == 2
    assert run(tiny_config(), packed, tmp_path) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optim__lr": 0.5}, r"optim\.lr changed"),
        ({"train__epochs": 9, "train__seed": 4}, r"train\.epochs, train\.seed changed"),
        ({"model__fpn_channels": 24}, r"model\.fpn_channels changed"),
    ],
)
def test_a_folder_of_other_settings_is_not_continued(
    packed, tiny_config, tmp_path, scripted, without_training, change, named
):
    scripted(0.1, 0.2)
    run(tiny_config(), packed, tmp_path)
    with pytest.raises(UserError, match=rf"holds a run to be resumed with the same settings, but {named}"):
        run(tiny_config(**change), packed, tmp_path)


def test_where_the_data_lie_and_how_they_are_loaded_may_change(
    packed, tiny_config, tmp_path, scripted, without_training
):
    scripted(0.1, 0.2)
    next(fit(tiny_config(), packed, tmp_path, device=CPU))
    moved = tiny_config(data__root="/elsewhere", train__workers=1)
    assert [report.epoch for report in run(moved, packed, tmp_path)] == [2]


def test_a_folder_of_other_data_is_not_continued(packed, tiny_config, tmp_path, scripted, without_training):
    scripted(0.1, 0.2)
    run(tiny_config(), packed, tmp_path)
    metadata = packed.table.schema.metadata | {b"fingerprint": b"another"}
    other = PackedDataset(packed.table.replace_schema_metadata(metadata))
    with pytest.raises(UserError, match=r"but the data changed\. Choose another folder"):
        run(tiny_config(), other, tmp_path)


def test_a_damaged_checkpoint_is_not_started_over_silently(packed, tiny_config, tmp_path, scripted, without_training):
    scripted(0.1, 0.2)
    next(fit(tiny_config(), packed, tmp_path, device=CPU))
    (state,) = (tmp_path / "last").glob("training-*.pt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match=r"training-0001-\w+\.pt: must be a file of tensors"):
        run(tiny_config(), packed, tmp_path)


def test_a_run_that_another_process_took_over_stops_and_leaves_it_alone(
    packed, tiny_config, tmp_path, scripted, without_training
):
    scripted(0.1, 0.2, 0.3, 0.4)
    config = tiny_config(train__epochs=3)
    cut_off, successor = (fit(config, packed, tmp_path, device=CPU) for _ in range(2))
    assert next(cut_off).epoch == 1
    assert next(successor).epoch == 2, "it goes on where the other was"
    before = sorted(path.stat().st_ino for path in tmp_path.rglob("*"))
    with pytest.raises(SupersededError, match="must be written by one process, but got another that began later"):
        next(cut_off)
    assert sorted(path.stat().st_ino for path in tmp_path.rglob("*")) == before
    assert [report.epoch for report in successor] == [3]
    for name in ("best", "last"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.info.epoch == 3
        checkpoint.load_weights()  # which compares their hash


def test_a_run_whose_trial_has_ended_elsewhere_writes_nothing_more(
    packed, tiny_config, tmp_path, scripted, without_training
):
    scripted(0.1, 0.2)
    cut_off = fit(tiny_config(), packed, tmp_path / "t0001", device=CPU)
    next(cut_off)
    shutil.rmtree(tmp_path / "t0001")
    with pytest.raises(SupersededError):
        next(cut_off)
    assert not (tmp_path / "t0001").exists()


def test_patience_ends_a_run_without_a_new_best(packed, tiny_config, tmp_path, scripted, without_training):
    scripted(0.1, 0.3, 0.2, 0.3, 0.2, 0.9)
    reports = run(tiny_config(train__epochs=6, train__patience=3), packed, tmp_path)
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5]
    assert [report.ending for report in reports] == [None] * 4 + ["patience"]
    assert run(tiny_config(train__epochs=6, train__patience=3), packed, tmp_path) == []


def test_of_a_loss_the_smallest_is_best_and_told_as_it_is(packed, tiny_config, tmp_path, scripted, without_training):
    scripted(3.0, 2.0, 2.5, 2.0, 1.0)
    config = tiny_config(train__epochs=5, train__metric="loss/validation", train__patience=2)
    reports = run(config, packed, tmp_path)
    assert [report.value for report in reports] == [3.0, 2.0, 2.5, 2.0]
    assert [(report.best_epoch, report.best_value) for report in reports] == [(1, 3.0), (2, 2.0), (2, 2.0), (2, 2.0)]
    assert reports[-1].ending == "patience"
    assert (open_checkpoint(tmp_path / "best").info.epoch, open_checkpoint(tmp_path / "best").info.value) == (2, 2.0)


@pytest.mark.parametrize(
    ("settings", "values", "last_epoch"),
    [
        ({"train__stop_after_decays": 1}, (0.1, 0.3, 0.2, 0.2, 0.2, 0.2), 4),
        ({"train__stop_after_decays": 2}, (0.1, 0.3, 0.2, 0.2, 0.2, 0.2), 6),
        ({"train__stop_after_decays": 2}, (0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1), 8),  # a new best after one decay
        ({"train__stop_after_decays": 1, "optim__warmup_epochs": 3}, (0.1, 0.2, 0.1, 0.1, 0.1, 0.1), 6),
        ({"train__stop_after_decays": 1, "optim__schedule": "constant"}, (0.1,) * 9, None),
        ({"train__stop_after_decays": None}, (0.1,) * 9, None),
    ],
)
def test_a_run_ends_when_the_rate_was_lowered_so_often_since_the_best_epoch(
    packed, tiny_config, tmp_path, scripted, without_training, settings, values, last_epoch
):
    scripted(*values)
    config = tiny_config(**PLATEAU | {"train__epochs": 9, "optim__plateau_patience": 2} | settings)
    if last_epoch is None:
        assert run(config, packed, tmp_path)[-1].ending == "epochs"
        return
    killed = fit(config, packed, tmp_path, device=CPU)
    before = list(itertools.islice(killed, 3))
    killed.close()
    reports = before + run(config, packed, tmp_path)  # what was watched before counts on
    assert [report.ending for report in reports] == [None] * (last_epoch - 1) + ["patience"]


def test_the_best_checkpoint_is_of_the_best_epoch_and_the_first_of_equals(
    packed, tiny_config, tmp_path, scripted, without_training
):
    scripted(0.1, 0.3, 0.2, 0.3)
    reports = run(tiny_config(train__epochs=4), packed, tmp_path)
    assert [report.best_epoch for report in reports] == [1, 2, 2, 2]
    assert [report.best_value for report in reports] == [0.1, 0.3, 0.3, 0.3]
    best, last = open_checkpoint(tmp_path / "best").info, open_checkpoint(tmp_path / "last").info
    assert (best.epoch, best.value, best.training) == (2, 0.3, None)
    assert (last.epoch, last.value) == (4, 0.3)
    assert len(list((tmp_path / "best").iterdir())) == 2
    assert len(list((tmp_path / "last").iterdir())) == 4, "the owner, too"


def test_the_best_is_remembered_over_a_restart(packed, tiny_config, tmp_path, scripted, without_training):
    scripted(0.3, 0.2)
    next(fit(tiny_config(), packed, tmp_path, device=CPU))
    (report,) = run(tiny_config(), packed, tmp_path)
    assert (report.value, report.best_value, report.best_epoch) == (0.2, 0.3, 1)
    assert open_checkpoint(tmp_path / "best").info.epoch == 1


def test_a_checkpoint_says_what_it_was_trained_with(packed, tiny_config, tmp_path, scripted, without_training):
    scripted(0.1)
    config = tiny_config(train__epochs=1, model__anchors="auto", model__detections_per_image="auto")
    run(config, packed, tmp_path)
    info = open_checkpoint(tmp_path / "best").info
    assert info.data_fingerprint == packed.fingerprint
    assert info.class_names == packed.class_names
    assert info.config["model.anchors"] != "auto" and info.config["model.detections_per_image"] == 100
    assert info.metrics["segm/AP"] == 0.1
    assert info.parameters == sum(p.numel() for p in load_model(open_checkpoint(tmp_path / "best")).parameters())


def test_steps_are_counted_within_the_epoch(packed, tiny_config, tmp_path, scripted):
    scripted(0.1)
    steps = []
    list(
        fit(
            tiny_config(train__epochs=1, train__batch_size=4),
            packed,
            tmp_path,
            device=CPU,
            on_step=lambda *s: steps.append(s),
        )
    )
    assert steps == [(1, 2), (2, 2)]


def test_gradients_are_clipped_to_the_norm(packed, tiny_config, tmp_path, scripted):
    scripted(0.1)
    frozen = {"optim__optimizer": "sgd", "optim__momentum": 0.0, "optim__weight_decay": 0.0, "train__batch_size": 6}
    config = tiny_config(train__epochs=1, optim__lr=1.0, optim__schedule="constant", optim__clip_norm=1e-3, **frozen)
    train_run = training.TrainingRun(config, packed, tmp_path, CPU)
    before = {name: p.detach().clone() for name, p in train_run.model.named_parameters()}
    train_run.epoch = 1
    list(train_run.train_epoch())
    after = dict(train_run.model.named_parameters())
    moved = math.sqrt(sum((after[name].detach() - old).square().sum().item() for name, old in before.items()))
    assert moved == pytest.approx(1e-3, rel=0.05)  # one step at rate 1


def test_a_loss_that_is_not_finite_ends_the_run_with_its_name(packed, tiny_config, tmp_path, monkeypatch):
    original = training.TrainingRun.train_epoch

    def exploding(self):
        if self.epoch == 2:
            add = self.stepper.add_gradients
            broken = dict.fromkeys(("loss_mask", "loss_dice"), torch.tensor(math.nan))
            self.stepper.add_gradients = lambda *arguments: add(*arguments) | broken
        return original(self)

    monkeypatch.setattr(training.TrainingRun, "train_epoch", exploding)
    reports = fit(tiny_config(train__epochs=3), packed, tmp_path, device=CPU)
    next(reports)
    with pytest.raises(TrainingError, match="non-finite: loss_mask in epoch 2") as raised:
        next(reports)
    assert raised.value.reason == "non-finite"
    assert open_checkpoint(tmp_path / "last").info.epoch == 1


def test_a_validation_loss_that_is_not_finite_ends_the_run_too(packed, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "validation_loss", lambda *_: math.inf)
    with pytest.raises(TrainingError, match="non-finite: loss/validation in epoch 1"):
        run(tiny_config(), packed, tmp_path)
    assert not has_checkpoint(tmp_path / "last")


def test_a_rate_that_is_far_too_high_ends_the_run_as_non_finite(packed, tiny_config, tmp_path):
    wild = {"optim__lr": 1e30, "optim__schedule": "constant", "optim__optimizer": "sgd", "optim__clip_norm": None}
    with pytest.raises(TrainingError, match="non-finite"):
        run(tiny_config(train__epochs=3, train__batch_size=1, **wild), packed, tmp_path)


def test_two_images_can_be_learned_by_heart(packed, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(type(packed), "split", lambda *_: Split((0, 4), (0, 4)))
    config = tiny_config(
        train__epochs=60,
        train__batch_size=1,
        optim__lr=3e-3,
        model__fpn_channels=32,
        model__box_head_width=64,
        model__mask_head_width=32,
        model__roi_samples=32,
        augment__preset="none",
    )
    assert any(report.value > 0.3 for report in fit(config, packed, tmp_path, device=CPU))  # after ten or so
