"""The trainable alone, without a cluster and without training."""

import errno
import json
import platform
from pathlib import Path

import pytest
import torch
from fakes import empty_table, make_report

import cellseg.training.fit
from cellseg.config import TrialConfig
from cellseg.errors import UserError
from cellseg.files import storage_error, write_json
from cellseg.owners import SupersededError
from cellseg.training.epoch_report import EpochReport, TrainingError
from search.cluster.trainable import DETAIL, ENDING, REPORT, CellTrainable, trial_name
from search.cluster.trial_reports import former_reports
from search.storage.progress import open_progress, read_progress

CPU = torch.device("cpu")


def config_of(number: int, folder: Path) -> dict:
    return {"study": "cells", "number": number, "config": {"optim.lr": 0.01}, "epochs": 0, "folder": str(folder)}


@pytest.fixture
def trainable(tmp_path, monkeypatch):
    """A trainable of trial 7, set up as Tune does it; what ``fit`` is given lands in ``calls``."""
    import ray

    trainable = CellTrainable.__new__(CellTrainable)
    trainable.titles, trainable.calls = [], []
    monkeypatch.setattr(ray._raylet, "setproctitle", trainable.titles.append)
    monkeypatch.setattr(CellTrainable, "_take_resources", lambda self: CPU)

    def use(fit):
        def recorded(*arguments, device, on_step):
            trainable.calls.append((*arguments, device))
            trainable.on_step = on_step
            return fit()

        monkeypatch.setattr(cellseg.training.fit, "fit", recorded)
        trainable.setup(config_of(7, tmp_path / "t0007"), data=empty_table())
        return trainable

    return use


def epochs(count: int = 2):
    for epoch in range(1, count + 1):
        yield EpochReport(**make_report(epoch, epoch / 10, ending="epochs" if epoch == count else None))


def raising(error: Exception):
    def fit():
        yield from epochs()
        raise error

    return fit


def test_a_step_reports_an_epoch_as_json(trainable):
    trainable = trainable(epochs)
    first, second, third = (trainable.step() for _ in range(3))
    assert json.loads(first[REPORT]) == make_report(1, 0.1)
    assert (first[ENDING], second[ENDING]) == (None, "epochs")
    assert (json.loads(third[REPORT]), third[ENDING]) == (None, "epochs"), "there is nothing left to train"
    assert all(set(result) == {REPORT, ENDING, DETAIL} for result in (first, second, third))


def test_a_trial_tells_where_it_is_in_its_epoch_until_it_ends(trainable, tmp_path):
    study, seen = tmp_path / "study", []

    def fit():
        for report in epochs():
            trainable.on_step(1, 2)
            seen.append(read_progress(study, 7))
            trainable.on_step(2, 2)
            yield report

    trainable = trainable(fit)
    trainable.setup(config_of(7, study / "checkpoints" / "t0007"), data=empty_table())
    study.mkdir()
    with open_progress(study):
        trainable.step()
        assert read_progress(study, 7).phase == "validating"
        trainable.step()
        told = [(now.phase, now.epoch, now.done, now.device) for now in seen]
        assert told == [("training", 1, 1, "cpu"), ("training", 2, 1, "cpu")]
        assert seen[0].memory_bytes > 10**6
        trainable.step()
        assert read_progress(study, 7) is None


def test_fit_gets_the_typed_config_the_data_and_the_folder_and_not_before_the_first_step(trainable, tmp_path):
    trainable = trainable(epochs)
    assert trainable.calls == []
    trainable.step()
    ((config, data, folder, device),) = trainable.calls
    assert device == CPU
    assert config == TrialConfig.from_flat({"optim.lr": 0.01})
    assert (data.class_names, folder) == (("class1",), tmp_path / "t0007")


@pytest.mark.parametrize(
    ("error", "ending", "detail"),
    [
        (TrainingError("non-finite", "loss_mask in epoch 2"), "non-finite", "loss_mask in epoch 2"),
        (TrainingError("out-of-memory", "80 GiB"), "out-of-memory", "80 GiB"),
        (RuntimeError("CUDA error: out of memory\nmore"), "out-of-memory", "CUDA error: out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out-of-memory", "CUDNN_STATUS_ALLOC_FAILED"),
        (MemoryError(), "out-of-memory", "MemoryError"),
        (UserError("model: too large.", "data: too few."), "invalid", "model: too large.\ndata: too few."),
        (KeyError("x"), "bug", "KeyError: 'x'"),
        (AssertionError(), "bug", "AssertionError"),
    ],
)
def test_an_error_is_an_ending_with_its_text(trainable, error, ending, detail):
    trainable = trainable(raising(error))
    results = [trainable.step() for _ in range(3)]
    assert [result[ENDING] for result in results] == [None, "epochs", ending]
    assert results[-1][DETAIL].strip().endswith(detail)
    assert json.loads(results[-1][REPORT]) is None


def full_disk() -> Exception:
    """As torch tells of a full disk: the system's error stands behind its own."""
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (
            storage_error(OSError(errno.EIO, "x"), Path("/shared/last")),
            "/shared/last: must be writable, but got 'Input",
        ),
        (OSError(errno.ESTALE, "Stale file handle", "/shared/w"), "/shared/w: must be usable, but got 'Stale file"),
        (full_disk(), "storage: must be usable, but got 'No space left on device'. Free some space"),
    ],
)
def test_storage_that_fails_is_an_ending_that_names_the_machine(trainable, error, place):
    trainable = trainable(raising(error))
    result = [trainable.step() for _ in range(3)][-1]
    assert result[ENDING] == "storage"
    assert result[DETAIL].startswith(f"{platform.node()}: {place}")
    assert json.loads(result[REPORT]) is None


def test_a_config_that_is_not_valid_is_an_ending_too(trainable):
    trainable = trainable(epochs)
    trainable.reset_config(config_of(8, Path()) | {"config": {"optim.lrr": 1}})
    result = trainable.step()
    assert result[ENDING] == "invalid"
    assert "Did you mean 'optim.lr'?" in result[DETAIL]


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "device-side assert triggered",
    ],
)
def test_a_broken_gpu_context_takes_the_process_with_it(trainable, text):
    trainable = trainable(raising(RuntimeError(text)))
    trainable.step()
    trainable.step()
    with pytest.raises(RuntimeError, match=text):
        trainable.step()


def test_a_process_that_lost_its_trial_to_another_tells_nothing_of_it(trainable):
    trainable = trainable(raising(SupersededError("another began later")))
    trainable.step()
    trainable.step()
    with pytest.raises(SupersededError):
        trainable.step()


def test_another_trial_takes_the_process_and_the_former_one_is_closed(trainable, tmp_path):
    closed = []

    def fit():
        try:
            yield from epochs()
        finally:
            closed.append(len(trainable.calls))

    trainable = trainable(fit)
    trainable.step()
    assert trainable.reset_config(config_of(8, tmp_path / "t0008"))
    assert closed == [], "nothing that takes time or can fail happens in the reset"
    assert json.loads(trainable.step()[REPORT])["epoch"] == 1
    assert closed == [1], "closed, and before the next one starts"
    assert [call[2].name for call in trainable.calls] == ["t0007", "t0008"]
    assert json.loads(trainable.step()[REPORT])["epoch"] == 2
    assert closed == [1], "a step of the same trial tears nothing down"


def test_a_teardown_that_fails_takes_the_process_with_it(trainable, tmp_path, monkeypatch):
    trainable = trainable(epochs)
    trainable.step()
    assert trainable.reset_config(config_of(8, tmp_path / "t0008"))

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trainable, "cleanup", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        trainable.step()
    assert len(trainable.calls) == 1, "the next trial never began in it"


def test_process_list_and_dashboard_name_the_trial(trainable):
    trainable = trainable(epochs)
    assert repr(trainable) == trial_name("cells", 7) == "cells/t0007"
    assert trainable.titles[-1] == "ray::cells/t0007"
    trainable.reset_config(config_of(12, Path()))
    assert trainable.titles[-1] == "ray::cells/t0012"


def test_the_process_list_shows_the_present_epoch(trainable, tmp_path):
    trainable = trainable(lambda: epochs(3))
    trainable.reset_config(config_of(9, tmp_path / "t0009") | {"config": {"train.epochs": 3}})
    for epoch in (1, 2, 3):
        trainable.step()
        assert trainable.titles[-1] == f"ray::cells/t0009 epoch {epoch}/3"
    trainable.reset_config(config_of(10, tmp_path / "t0010") | {"config": {"train.epochs": 3}, "epochs": 2})
    assert trainable.titles[-1] == "ray::cells/t0010"
    trainable.step()
    assert trainable.titles[-1] == "ray::cells/t0010 epoch 3/3"


def write_checkpoint(folder: Path, epoch: int, value: float, reports: list[dict] | None = None) -> None:
    """A description as ``cellseg.checkpoint`` writes it, without weights; without reports as earlier versions did."""
    folder.mkdir(parents=True, exist_ok=True)
    if reports is not None:
        torch.save({"reports": reports}, folder / "training.pt")
    description = {
        "config": {},
        "class_names": ["a"],
        "metric": "segm/AP50",
        "value": value,
        "epoch": epoch,
        "metrics": {"segm/AP50": value},
        "parameters": 1,
        "data_fingerprint": "",
        "versions": {},
        "weights": "weights.pt",
        "weights_blake2b": "",
        "training": None if reports is None else "training.pt",
        "format_version": 1,
    }
    write_json(folder / "checkpoint.json", description)


def test_a_trial_that_goes_on_repeats_the_epoch_it_goes_on_from(trainable, tmp_path):
    write_checkpoint(tmp_path / "t0007" / "best", 2, 0.7)
    write_checkpoint(tmp_path / "t0007" / "last", 3, 0.6)
    trainable = trainable(epochs)
    report = json.loads(trainable.step()[REPORT])
    assert (report["epoch"], report["value"], report["best_value"], report["best_epoch"]) == (3, 0.6, 0.7, 2)
    assert (report["metrics"], report["losses"], report["learning_rate"]) == ({"segm/AP50": 0.6}, {}, None)
    assert report.keys() == make_report(1, 0.1).keys()
    assert trainable.calls == []
    trainable.step()
    assert len(trainable.calls) == 1


def test_there_is_no_report_of_a_new_trial_or_of_an_epoch_that_is_trained_again(tmp_path):
    assert former_reports(tmp_path, 0) == []
    write_checkpoint(tmp_path / "best", 1, 0.7)
    assert former_reports(tmp_path, 0) == []
    write_checkpoint(tmp_path / "last", 1, 0.7)
    write_checkpoint(tmp_path / "best", 2, 0.8)
    assert former_reports(tmp_path, 0) == []


def test_a_trial_that_goes_on_reports_every_epoch_that_the_study_missed(tmp_path):
    """A kill may lose several short epochs, a rung or the end of training among them."""
    reports = [make_report(epoch, epoch / 10, ending="patience" if epoch == 4 else None) for epoch in range(1, 5)]
    write_checkpoint(tmp_path / "last", 4, 0.4, reports)
    assert former_reports(tmp_path, 0) == reports
    assert former_reports(tmp_path, 2) == reports[2:]
    assert former_reports(tmp_path, 4) == reports[3:], "the study hears where the trial is"
    assert former_reports(tmp_path, 9) == reports[3:], "its checkpoint is older than its tables"


def test_epochs_that_the_study_missed_are_told_again_in_full(trainable, tmp_path):
    """A killed driver may lose the rows of more than one short epoch."""
    folder = tmp_path / "t0007"
    write_checkpoint(folder / "last", 3, 0.3, [make_report(epoch, epoch / 10) for epoch in (1, 2, 3)])
    trainable = trainable(epochs)
    trainable._begin(config_of(7, folder) | {"epochs": 1})
    reports = [json.loads(trainable.step()[REPORT]) for _ in range(2)]
    assert reports == [make_report(2, 0.2), make_report(3, 0.3)]
    assert trainable.calls == []
    trainable.step()
    assert len(trainable.calls) == 1


class Assigned:
    """Ray's runtime context in a process that was given ``resources``."""

    def __init__(self, resources: dict):
        self.resources = resources

    def get_assigned_resources(self) -> dict:
        return self.resources


@pytest.fixture
def given(monkeypatch):
    """``given(resources)``: the device and the threads that a process takes on a machine with a GPU, and its limit."""
    import ray

    import cellseg.device

    def take(resources: dict, gpus: bool = True) -> tuple:
        threads, limits = [], []
        monkeypatch.setattr(ray, "get_runtime_context", lambda: Assigned(resources))
        monkeypatch.setattr(torch, "set_num_threads", threads.append)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
        monkeypatch.setattr(cellseg.device, "limit_gpu_memory", lambda _, share: limits.append(share))
        return CellTrainable._take_resources(CellTrainable.__new__(CellTrainable)), threads, limits

    return take


def test_a_trial_without_a_gpu_of_its_own_trains_on_the_cpu_though_torch_sees_one(given):
    assert given({"CPU": 2.0}) == (CPU, [2], [])
    assert given({"CPU": 0.5, "GPU": 0.0}) == (CPU, [1], [])


def test_a_trial_with_a_gpu_uses_it_and_with_a_share_of_one_no_more_than_its_memory(given):
    assert given({"CPU": 1.0, "GPU": 1.0}) == (torch.device("cuda"), [1], [])
    assert given({"CPU": 1.0, "GPU": 0.25}) == (torch.device("cuda"), [1], [0.25])


def test_a_gpu_that_torch_does_not_see_is_the_users_problem(given):
    with pytest.raises(UserError, match="torch must see the GPU that Ray gave the trial"):
        given({"CPU": 1.0, "GPU": 1.0}, gpus=False)


def test_what_a_process_cannot_use_ends_its_trials(trainable, monkeypatch):
    trainable = trainable(epochs)

    def unusable(self):
        raise UserError("resources.gpu: torch must see it, but got none. Install it.")

    monkeypatch.setattr(CellTrainable, "_take_resources", unusable)
    results = [trainable.step(), trainable.step()]
    assert [result[ENDING] for result in results] == ["invalid", "invalid"]
    assert trainable.calls == []
