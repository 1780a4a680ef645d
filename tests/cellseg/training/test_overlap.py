"""On a GPU an epoch trains while the one before is judged. Here a CPU does as if it were one."""

import threading
from dataclasses import asdict

import pytest
import torch

from cellseg.checkpoint import open_checkpoint
from cellseg.config import METRICS
from cellseg.errors import UserError
from cellseg.training import run as training
from cellseg.training.fit import fit
from cellseg.training.run import TrainingRun
from cellseg.training.snapshot import Snapshot
from cellseg.training.validation import Validation

CPU = torch.device("cpu")
TIMES = ("seconds", "images_per_second", "peak_memory_bytes")


@pytest.fixture
def like_a_gpu(monkeypatch):
    monkeypatch.setattr(TrainingRun, "on_gpu", True)
    monkeypatch.setattr(TrainingRun, "rehearse", lambda self: None)


@pytest.fixture
def figures(monkeypatch):
    """``figures(after=wait)``: the epochs' figures of the metric are 0.1, 0.2, ... and come after ``wait(n)``."""

    def script(after) -> None:
        counted = []

        def slow(self, predictions, loss):
            counted.append(loss)
            number = len(counted)
            after(number)
            return dict.fromkeys(METRICS, number / 10)

        monkeypatch.setattr(Validation, "_figures", slow)

    return script


def comparable(reports) -> list[dict]:
    return [{name: value for name, value in asdict(report).items() if name not in TIMES} for report in reports]


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_reports_and_checkpoints_are_the_same_with_overlap(
    packed, tiny_config, tmp_path, monkeypatch, ema_decay, request
):
    config = tiny_config(train__epochs=3, optim__ema_decay=ema_decay)
    alone = list(fit(config, packed, tmp_path / "alone", device=CPU))
    request.getfixturevalue("like_a_gpu")
    steps = []
    together = list(fit(config, packed, tmp_path / "together", device=CPU, on_step=lambda *step: steps.append(step)))
    assert comparable(together) == comparable(alone)
    assert steps == [(1, 2), (2, 2)] * 3
    for folder in ("best", "last"):
        one, other = (open_checkpoint(tmp_path / way / folder) for way in ("alone", "together"))
        assert one.info.epoch == other.info.epoch
        weights = other.load_weights()
        assert all(torch.equal(value, weights[name]) for name, value in one.load_weights().items())
    states = [open_checkpoint(tmp_path / way / "last").load_training() for way in ("alone", "together")]
    assert [len(state.pop("reports")) for state in states] == [3, 3], "they tell times"
    assert str(states[0]) == str(states[1])


def test_an_epoch_begins_before_the_figures_of_the_last_are_there(packed, tiny_config, tmp_path, like_a_gpu, figures):
    second_began = threading.Event()
    waited = []
    figures(after=lambda number: waited.append(number == 2 or second_began.wait(timeout=60)))
    trained = []

    def on_step(done, total):
        trained.append(done)
        if len(trained) == 3:
            second_began.set()

    reports = fit(tiny_config(train__epochs=2), packed, tmp_path, device=CPU, on_step=on_step)
    first = next(reports)
    assert first.epoch == 1
    assert 3 <= len(trained) <= 4, "the first epoch is told during the second"
    assert next(reports).epoch == 2
    assert waited == [True, True]


def test_a_run_stopped_at_a_report_has_the_checkpoint_of_that_epoch(packed, tiny_config, tmp_path, like_a_gpu, figures):
    figures(after=lambda number: None)
    config = tiny_config(train__epochs=3)
    whole = list(fit(config, packed, tmp_path / "whole", device=CPU))
    stopped = fit(config, packed, tmp_path / "stopped", device=CPU)
    next(stopped)
    stopped.close()
    assert open_checkpoint(tmp_path / "stopped" / "last").info.epoch == 1
    rest = list(fit(config, packed, tmp_path / "stopped", device=CPU))
    assert [report.losses for report in rest] == [report.losses for report in whole[1:]]


@pytest.fixture
def saving(monkeypatch):
    """``saving(before)``: every checkpoint is written after ``before(folder, epoch)``."""
    original = training.save_checkpoint

    def script(before) -> None:
        def save(folder, *arguments, **keywords):
            before(folder.name, keywords["epoch"])
            original(folder, *arguments, **keywords)

        monkeypatch.setattr(training, "save_checkpoint", save)

    return script


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_gpu_trains_on_while_checkpoints_are_written_and_a_report_waits_for_them(
    packed, tiny_config, tmp_path, like_a_gpu, saving, schedule
):
    second_began, trained, waited = threading.Event(), [], []

    def on_step(done, total):
        trained.append(done)
        if len(trained) == 3:
            second_began.set()

    saving(lambda name, epoch: waited.append(epoch == 2 or second_began.wait(timeout=60)))
    config = tiny_config(train__epochs=2, optim__schedule=schedule)
    reports = fit(config, packed, tmp_path, device=CPU, on_step=on_step)
    for epoch in (1, 2):
        assert next(reports).epoch == epoch
        assert open_checkpoint(tmp_path / "last").info.epoch == epoch, "a report promises its checkpoint"
    assert all(waited) and len(waited) >= 3


def test_an_epoch_that_fails_takes_neither_report_nor_checkpoint_from_the_one_before(
    packed, tiny_config, tmp_path, like_a_gpu, saving
):
    failed = threading.Event()
    saving(lambda name, epoch: failed.wait(timeout=60))

    def on_step(done, total):
        steps.append(done)
        if len(steps) == 3:
            failed.set()
            raise ZeroDivisionError("epoch 2")

    steps: list[int] = []
    reports = fit(tiny_config(train__epochs=3), packed, tmp_path, device=CPU, on_step=on_step)
    assert next(reports).epoch == 1
    assert open_checkpoint(tmp_path / "last").info.epoch == 1
    with pytest.raises(ZeroDivisionError, match="epoch 2"):
        next(reports)


def test_checkpoints_that_cannot_be_written_end_the_run(packed, tiny_config, tmp_path, like_a_gpu, saving):
    def full_disk(name, epoch):
        raise UserError("last: must be writable, but got 'No space left on device'. Check space and rights.")

    saving(full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        list(fit(tiny_config(), packed, tmp_path, device=CPU))


def test_what_is_being_written_when_a_run_ends_is_written_to_its_end(packed, tiny_config, tmp_path, like_a_gpu):
    run = TrainingRun(tiny_config(), packed, tmp_path, CPU)
    run.epoch = 1
    list(run.train_epoch())
    run.judge(run.conclude(1.0))
    run.close()
    assert open_checkpoint(tmp_path / "last").info.epoch == 1


def test_where_the_processor_trains_nothing_is_written_beside(packed, tiny_config, tmp_path):
    run = TrainingRun(tiny_config(), packed, tmp_path, CPU)
    run.epoch = 1
    assert not run.saves_beside


@pytest.mark.parametrize(
    ("settings", "repeat"),
    [
        ({}, False),
        ({"data__crop": 32}, True),
        ({"data__resize": "square", "data__shorter_side": 64}, True),
        ({"data__resize": "square", "data__shorter_side": 64, "data__train_scale_min": 0.5}, False),
    ],
)
def test_few_shapes_are_worth_looking_for_the_quickest_way(packed, tiny_config, settings, repeat):
    indices = tuple(range(len(packed)))
    assert training.shapes_repeat(packed, indices, tiny_config(**settings)) == repeat


def test_patience_ends_a_run_in_the_middle_of_the_next_epoch(packed, tiny_config, tmp_path, like_a_gpu, monkeypatch):
    monkeypatch.setattr(Validation, "_figures", lambda *_: dict.fromkeys(METRICS, 0.5))
    reports = list(fit(tiny_config(train__epochs=9, train__patience=2), packed, tmp_path, device=CPU))
    assert [report.ending for report in reports] == [None, None, "patience"]


def test_a_plateau_waits_for_the_figures_it_watches(packed, tiny_config, tmp_path, like_a_gpu):
    plateau = TrainingRun(tiny_config(optim__schedule="plateau"), packed, tmp_path, CPU)
    other = TrainingRun(tiny_config(train__epochs=2), packed, tmp_path, CPU)
    plateau.epoch = other.epoch = 1
    assert not plateau.overlaps
    assert other.overlaps
    other.epoch = 2
    assert not other.overlaps, "there is no next epoch"


def test_errors_of_the_figures_reach_the_caller(packed, tiny_config, tmp_path, like_a_gpu, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("figures")

    monkeypatch.setattr(Validation, "_figures", broken)
    with pytest.raises(ZeroDivisionError, match="figures"):
        list(fit(tiny_config(), packed, tmp_path, device=CPU))


def test_no_thread_outlives_a_run(packed, tiny_config, tmp_path, like_a_gpu):
    before = set(threading.enumerate())
    reports = fit(tiny_config(train__epochs=3), packed, tmp_path, device=CPU)
    next(reports)
    reports.close()
    assert set(threading.enumerate()) <= before


def test_a_copied_state_no_longer_changes():
    weight = torch.ones(2)
    copied = Snapshot(
        {"state": {0: {"step": weight}}, "groups": [{"lr": 1.0, "weights": [weight]}], "none": None}
    ).states()
    weight += 1
    assert copied["state"][0]["step"].tolist() == copied["groups"][0]["weights"][0].tolist() == [1, 1]
    assert copied["none"] is None
    assert copied["groups"][0]["lr"] == 1.0
