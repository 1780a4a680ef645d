"""What a study does when its storage fails or fills up."""

import shutil
from types import SimpleNamespace

import pytest
from fakes import finish, make_report, make_study

from cellseg.files import StorageError
from search.storage.store import StudyStore
from search.study import storage_watch
from search.study.storage_watch import RESERVED_BYTES

FULL = "node7: /shared/t0000/last/weights.pt: must be writable, but got 'No space left on device'. Free some space."


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


@pytest.fixture
def disk(monkeypatch):
    """A disk whose free bytes a test sets, and which is looked at each time."""
    disk = SimpleNamespace(total=10**12, free=10**11, error=None)

    def usage(path):
        if disk.error is not None:
            raise disk.error
        return SimpleNamespace(total=disk.total, free=disk.free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(storage_watch, "LOOK_SECONDS", 0.0)
    return disk


def write_checkpoint(study, number: int, size: int) -> None:
    for name in ("best", "last"):
        folder = study.store.checkpoint_folder(number) / name
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_bytes(b"x" * size)


def states(study) -> list[str]:
    return [row.state for row in StudyStore.open(study.store.folder).trials()]


def test_a_trial_that_cannot_write_is_interrupted_keeps_its_checkpoints_and_stops_the_search(study):
    for number in range(2):
        study.propose()
        write_checkpoint(study, number, 10)
        study.report(number, make_report(1, 0.5 - number / 100, metric="segm/AP50"))
    study.end(0, "storage", FULL)
    assert study.must_stop
    assert study.propose() is None
    assert study.interrupt() == [] if states(study)[1] != "RUNNING" else [1]
    rows = StudyStore.open(study.store.folder).trials()
    assert rows[0].state == "INTERRUPTED"
    assert rows[0].reason == f"storage: {FULL}"
    assert (study.store.checkpoint_folder(0) / "last").is_dir()
    assert str(study.storage_error) == FULL
    assert isinstance(study.storage_error, StorageError)
    assert not study.is_over, "the same command goes on"
    assert study.abort_reason is None


def test_a_study_whose_storage_failed_goes_on_with_the_next_search(study):
    before = study.propose()
    study.report(0, make_report(1, 0.5))
    study.end(0, "storage", FULL)
    study.interrupt()
    again = make_study(study.store.folder.parent)
    assert again.storage_error is None
    assert again.propose() == before
    again.report(0, make_report(4, 0.6, ending="epochs"))
    finish(again, 0, "epochs")
    assert states(again) == ["COMPLETE"]


def test_any_number_of_trials_without_space_is_no_failure_in_a_row(study):
    for _ in range(4):
        study.propose()
    for number in range(4):
        study.end(number, "storage", FULL)
    assert study.abort_reason is None
    assert states(study) == ["INTERRUPTED"] * 4


def test_a_disk_that_is_almost_full_stops_the_search_before_a_trial_meets_it(study, disk):
    assert study.propose() is not None
    assert not study.must_stop
    disk.free = RESERVED_BYTES - 1
    assert study.must_stop
    assert study.propose() is None
    assert study.interrupt() == [0]
    (row,) = StudyStore.open(study.store.folder).trials()
    assert row.state == "INTERRUPTED"
    assert "must have 256 MiB free for tables and the checkpoints of 1 running trial, but got 256 MiB" in row.reason
    disk.free = 10**11
    assert study.must_stop, "this search has stopped; trials are being interrupted"
    assert not make_study(study.store.folder.parent).must_stop


def test_every_running_trial_needs_room_for_another_checkpoint(study, disk):
    size = 4000
    for _ in range(3):
        study.propose()
    write_checkpoint(study, 0, size)  # the others have not written theirs: they count as large
    disk.free = RESERVED_BYTES + 3 * 2 * size
    assert not study.must_stop
    disk.free -= 1
    assert study.must_stop


def test_the_size_of_shared_weights_counts_once(study):
    write_checkpoint(study, 0, 100)
    best, last = (study.store.checkpoint_folder(0) / name / "weights-0001.pt" for name in ("best", "last"))
    best.write_bytes(b"x" * 1000)
    last.hardlink_to(best)
    assert study.store.checkpoint_bytes(0) == 1200
    assert study.store.checkpoint_bytes(1) == 0


def test_a_disk_that_does_not_tell_its_size_stops_nothing(study, disk):
    disk.total = disk.free = 0
    assert not study.must_stop


def test_a_folder_that_is_no_longer_mounted_stops_the_search(study, disk):
    disk.error = OSError(116, "Stale file handle")
    assert study.must_stop
    assert "must be writable, but got 'Stale file handle'. Mount the file system again" in str(study.storage_error)


def test_the_disk_is_looked_at_now_and_then_only(study, monkeypatch):
    looks = []
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: looks.append(path) or real(path))
    for _ in range(1000):
        assert not study.must_stop
    assert len(looks) <= 1


def test_a_search_that_has_all_its_trials_is_over_however_full_the_disk_is(tmp_path, disk):
    study = make_study(tmp_path, trials=1)
    study.propose()
    study.report(0, make_report(4, 0.6, ending="epochs"))
    finish(study, 0, "epochs")
    disk.free = 0
    assert study.is_over
