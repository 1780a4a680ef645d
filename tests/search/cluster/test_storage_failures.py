"""A search on a real Ray whose trials cannot write."""

import errno
from pathlib import Path

import pytest
from fakes import FITS, FakeTrainable, empty_table, make_study

import search.cluster.driver
from cellseg.files import StorageError, storage_error
from search.cluster.driver import run_study
from search.storage.store import StudyStore

ONE_CPU = {"cpu": 1, "gpu": 0}


def make_trainable(full: Path) -> type[FakeTrainable]:
    """Trials that cannot write their third epoch while the file ``full`` is there. The class is local so that it
    travels to the workers by value."""

    class FullDiskTrainable(FakeTrainable):
        def _fit(self, config):
            for report in FITS["steady"](config):
                if full.exists() and report["epoch"] == 3:
                    (Path(config["folder"]) / "last" / "epoch").write_text("2")
                    raise storage_error(OSError(errno.ENOSPC, "full"), Path(config["folder"]) / "last")
                yield report

    return FullDiskTrainable


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("small_ray")
def test_a_full_disk_stops_the_search_and_with_space_it_goes_on_where_it_was(tmp_path, monkeypatch):
    full = tmp_path / "full"
    full.touch()
    monkeypatch.setattr(search.cluster.driver, "CellTrainable", make_trainable(full))
    study = make_study(tmp_path, "steady", trials=4, asha=False)
    with pytest.raises(StorageError, match=r"/last: must be writable, but got 'No space left on device'\. Free some"):
        run_study(study, empty_table(), ONE_CPU)
    rows = StudyStore.open(study.store.folder).trials()
    assert {row.state for row in rows} == {"INTERRUPTED"}
    assert any(row.reason.startswith("storage: ") for row in rows)
    full.unlink()
    study = make_study(tmp_path, "steady", trials=4, asha=False)
    assert run_study(study, empty_table(), ONE_CPU)
    rows = StudyStore.open(study.store.folder).trials()
    assert [(row.number, row.state, row.epochs) for row in rows] == [(n, "COMPLETE", 4) for n in range(4)]
