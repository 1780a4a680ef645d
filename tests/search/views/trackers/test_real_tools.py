"""The tools themselves read what was written for them: TensorBoard's reader, MLflow's store, W&B offline."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import make_report, make_study

from search.storage.store import StudyStore
from search.views.trackers.tracking import Tracking

CREATED = {"created": "2026-03-01T08:00:00+00:00"}


def searched(folder: Path, tracker: str, *, until: int, monkeypatch: pytest.MonkeyPatch) -> StudyStore:
    """A search of three trials of four epochs that was stopped after so many epochs of the first; then continued."""
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(folder / "none"))
    for last in (until, 4):
        study = make_study(folder, "cells", asha=False, metric="segm/AP50@all")
        study.store.write_study(study.store.study | CREATED)
        notes: list[str] = []
        tracking = Tracking(study.store, [tracker], notes.append)
        while (proposal := study.propose()) is not None and study.num_finished < 2:
            number = proposal.number
            for epoch in range(study.store.trial(number).epochs + 1, last + 1):
                report = make_report(epoch, number / 10 + epoch / 100, metric="segm/AP50@all")
                study.report(number, report)
                tracking.epoch(study.store.trial(number), study.store.epochs(number)[-1])
            if last < 4:
                break
            ending = "epochs" if number else "bug"
            study.end(number, ending, "" if number else "KeyError: 'cells'")
            tracking.end(study.store.trial(number))
        study.interrupt()
        tracking.close()
        assert notes == []
    return study.store


def test_tensorboard_reads_every_point_once_and_the_hyperparameters(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    store = searched(tmp_path, "tensorboard", until=2, monkeypatch=monkeypatch)
    runs = sorted(path.name for path in (store.folder / "tensorboard").glob("t*"))
    assert runs == ["t0000", "t0001", "t0002"]
    for row in store.trials()[:3]:
        events = accumulator.EventAccumulator(str(store.folder / "tensorboard" / f"t{row.number:04d}"))
        events.Reload()
        points = events.Scalars("segm/AP50_all")
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert [point.value for point in points] == pytest.approx([row.number / 10 + e / 100 for e in (1, 2, 3, 4)])
        assert {"train/loss", "run/seconds", "run/learning_rate", "run/memory_gib"} <= set(events.Tags()["scalars"])
        assert [point.value for point in events.Scalars("best/segm/AP50_all")] == pytest.approx([row.metric])
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        told = plugin_data.HParamsPluginData.FromString(content).session_start_info.hparams
        params = json.loads(row.params)
        assert set(told) == {*params, "state"}
        assert told["optim.lr"].number_value == pytest.approx(params["optim.lr"])
        assert told["state"].string_value == row.state.lower()


def test_mlflow_holds_every_point_once_in_a_database_of_the_study(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    store = searched(tmp_path, "mlflow", until=2, monkeypatch=monkeypatch)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{store.folder}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("cells")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "t0000": "FAILED",
        "t0001": "FINISHED",
        "t0002": "FINISHED",
    }
    for row in store.trials()[:3]:
        run = runs[f"t{row.number:04d}"]
        history = client.get_metric_history(run.info.run_id, "segm/AP50-all")
        assert sorted(point.step for point in history) == [1, 2, 3, 4]
        assert run.data.params == {key: str(value) for key, value in json.loads(row.params).items()}
        assert run.data.metrics["best/segm/AP50-all"] == row.metric
    assert runs["t0000"].data.tags["reason"] == "bug: KeyError: 'cells'"


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a file shorter than 32 KiB: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place = path.read_bytes(), 7
    assert len(content) < 2**15
    while place < len(content):
        _, length, kind = struct.unpack_from("<IHB", content, place)
        assert kind == 1, "a record in one piece"
        yield Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length


def test_wandb_writes_one_offline_run_for_each_trial_and_starts_one_that_goes_on_anew(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    store = searched(tmp_path, "wandb", until=2, monkeypatch=monkeypatch)
    files = sorted((store.folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.name)
    assert [path.stem[-5:] for path in files] == ["t0000", "t0001", "t0002"]
    for path in files:
        steps = []
        for record in wandb_records(path):
            if record.HasField("history"):
                assert "segm/AP50@all" in {item.key or ".".join(item.nested_key) for item in record.history.item}
                steps.append(record.history.step.num)
        assert steps == [1, 2, 3, 4]
    assert (store.folder / "wandb" / "ended").read_text().split() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("variables", "login", "expected"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k"}, "", "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "", "offline"),
        ({}, "machine api.wandb.ai login user password k\n", "online"),
        ({}, "machine other.host login user password k\n", "offline"),
    ],
)
def test_wandb_is_offline_unless_its_user_is_logged_in(tmp_path, monkeypatch, variables, login, expected):
    from search.views.trackers.wandb import mode

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(login)
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert mode() == expected
