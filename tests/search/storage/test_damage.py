"""Damaged files of studies: their backups, and the studies beside them."""

import errno
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from fakes import finish, make_report, make_study

from cellseg.cli import run_command, say
from cellseg.errors import Notice, UserError
from search.storage import store as store_module
from search.storage.find import latest_study, list_studies
from search.storage.kept import choose_trial
from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow

TABLES = ["study.json", "trials.parquet", "epochs/part-00000.parquet"]


def row(number: int, **changes) -> TrialRow:
    values = {"state": "COMPLETE", "params": "{}", "config": "{}", "seed": 0, "started": "2026-01-01T00:00:00+00:00"}
    return TrialRow(number=number, **values | changes)


@pytest.fixture
def store(tmp_path) -> StudyStore:
    """A study whose every file was written at least twice."""
    store = StudyStore.create(tmp_path / "my cells", {"metric": "m"})
    store.write_study({"metric": "m"})
    for number in range(3):
        store.put_trial(row(number, metric=number / 10))
        store.add_epoch(EpochRow(trial=number, epoch=1))
    return store


@pytest.mark.parametrize("content", [b"", b"PAR1...."], ids=["empty", "cut"])
@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_file_names_the_command_that_brings_its_backup_back(store, name, content):
    (store.folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        StudyStore.open(store.folder)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{store.folder / name}: must be ")
    _, command = problem.split("Restore its state before the last write: ")
    assert shlex.split(command) == ["cp", f"{store.folder}/backup/{name}", f"{store.folder / name}"]
    subprocess.run(command, shell=True, check=True)
    again = StudyStore.open(store.folder)
    assert [trial.number for trial in again.trials()] == ([0, 1] if name == "trials.parquet" else [0, 1, 2])
    assert len(again.epochs()) == (2 if name.startswith("epochs") else 3)


@pytest.mark.parametrize("name", TABLES)
def test_without_a_good_backup_a_copy_is_asked_for(store, name):
    for path in (store.folder / name, store.folder / "backup" / name):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"Restore it from a copy\.$"):
        StudyStore.open(store.folder)


def test_a_table_that_is_gone_is_damage_and_no_new_study(store):
    (store.folder / "trials.parquet").unlink()
    with pytest.raises(UserError, match=r"trials\.parquet: must be a readable .*: cp "):
        StudyStore.open(store.folder)


def test_a_study_that_goes_on_from_its_backup_repeats_what_was_lost(tmp_path):
    study = make_study(tmp_path)
    study.propose()
    study.report(0, make_report(1, 0.5))
    study.report(0, make_report(2, 0.6))
    table = study.store.folder / "trials.parquet"
    table.write_bytes((study.store.folder / "backup" / "trials.parquet").read_bytes())
    again = make_study(tmp_path)
    assert (again.propose().number, again.store.trial(0).epochs) == (0, 1)
    again.report(0, make_report(2, 0.6))
    assert [epoch.epoch for epoch in again.store.epochs(0)] == [1, 2]


def test_only_the_parts_that_may_be_hurt_have_backups(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PART_ROWS", 4)
    store = StudyStore.create(tmp_path / "s", {})
    for number in range(1, 20):
        store.add_epoch(EpochRow(trial=0, epoch=number))
    names = sorted(path.name for path in (store.folder / "backup" / "epochs").iterdir())
    assert names == ["part-00003.parquet", "part-00004.parquet"]


def test_a_damaged_study_does_not_hide_healthy_ones(tmp_path, store):
    for name in ("healthy", "empty table", "cut epochs"):
        other = StudyStore.create(tmp_path / name, {"metric": "m"})
        other.put_trial(row(0, metric=0.5, started=f"2026-02-0{1 + len(name) % 9}T00:00:00+00:00"))
        other.add_epoch(EpochRow(trial=0, epoch=1))
    (tmp_path / "empty table" / "trials.parquet").write_bytes(b"")
    (tmp_path / "cut epochs" / "epochs" / "part-00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "no description").mkdir()
    (tmp_path / "no description" / "study.json").write_bytes(b"")
    with pytest.warns(Notice) as caught:
        assert {study.name for study in list_studies(tmp_path)} == {"healthy", "my cells"}
    texts = sorted(str(notice.message) for notice in caught)
    assert len(texts) == 3
    assert all(text.endswith("This study was skipped.") for text in texts)
    assert "cut epochs/epochs/part-00000.parquet: must be a readable Parquet file" in texts[0]
    assert "empty table/trials.parquet: must be a readable Parquet file" in texts[1]
    assert "no description/study.json: must be valid JSON" in texts[2]
    with pytest.warns(Notice):
        assert latest_study(tmp_path).name == "healthy"


def test_if_every_study_is_damaged_its_error_is_told(store):
    (store.folder / "trials.parquet").write_bytes(b"")
    with pytest.warns(Notice), pytest.raises(UserError, match=r"trials\.parquet: must be a readable Parquet file"):
        latest_study(store.folder.parent)


def test_a_command_prints_a_notice_as_a_line(store, capsys):
    import argparse

    StudyStore.create(store.folder.parent / "healthy", {})
    (store.folder / "study.json").write_bytes(b"")

    def command(_) -> int:
        say(latest_study(store.folder.parent).name)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.showwarning", lambda *_: pytest.fail("not ours"))
        assert run_command(argparse.ArgumentParser(), command, []) == 0
    captured = capsys.readouterr()
    assert captured.out == "healthy\n"
    assert captured.err.startswith(f"warning: {store.folder}/study.json: must be valid JSON, but got")
    assert captured.err.count("\n") == 1


def test_the_latest_study_is_one_with_a_result(tmp_path):
    """A search that has just begun, or whose trials all fail, has nothing to export."""
    StudyStore.create(tmp_path / "done", {}).put_trial(row(0, metric=0.5))
    StudyStore.create(tmp_path / "failing", {}).put_trial(row(0, state="FAILED", started="2027-01-01T00:00:00+00:00"))
    StudyStore.create(tmp_path / "just made", {})
    assert latest_study(tmp_path).name == "done"
    assert [study.name for study in list_studies(tmp_path)] == ["done", "failing", "just made"]


def keep_weights(study, number: int) -> Path:
    folder = study.store.checkpoint_folder(number) / "best"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint.json").write_text("{}")
    return folder


def test_the_best_trial_may_still_run(tmp_path):
    study = make_study(tmp_path)
    for number, value in enumerate((0.4, 0.6)):
        study.propose()
        study.report(number, make_report(1, value))
        keep_weights(study, number)
    finish(study, 0, "epochs")
    assert choose_trial(study.store, None).number == 1


def test_if_the_best_trials_weights_are_gone_the_next_one_is_named_instead(tmp_path):
    study = make_study(tmp_path, keep=3, asha=False)
    for number, value in enumerate((0.4, 0.6, 0.5)):
        study.propose()
        study.report(number, make_report(1, value))
        keep_weights(study, number)
        finish(study, number, "epochs")
    (study.store.checkpoint_folder(1) / "best" / "checkpoint.json").unlink()
    with pytest.warns(Notice, match=r"trial 1 ranks first, but its checkpoint is gone\. Trial 2 is the best of those"):
        assert choose_trial(study.store, None).number == 2
    with pytest.raises(UserError, match=r"trial 1: its checkpoint must have been kept, but got those of \[0, 2\]"):
        choose_trial(study.store, 1)


def test_rows_that_a_full_disk_refused_are_written_by_the_next_flush(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PART_ROWS", 4)
    store = StudyStore.create(tmp_path / "s", {})
    sync = os.fsync

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(1, 4):
        store.add_epoch(EpochRow(trial=0, epoch=number))
    monkeypatch.setattr(os, "fsync", full)
    for number in (4, 5):  # the first would have filled the part
        with pytest.raises(UserError, match="No space left on device"):
            store.add_epoch(EpochRow(trial=0, epoch=number))
    with pytest.raises(UserError, match="No space left on device"):
        store.put_trial(row(0, epochs=5))
    monkeypatch.setattr(os, "fsync", sync)
    store.flush()
    for number in range(6, 12):
        store.add_epoch(EpochRow(trial=0, epoch=number))
    again = StudyStore.open(store.folder)
    assert [epoch.epoch for epoch in again.epochs()] == list(range(1, 12))
    assert [trial.epochs for trial in again.trials()] == [5]
    assert again.epochs() == store.epochs()
