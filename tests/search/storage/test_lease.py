"""The lock of a study on a file system without locks."""

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack

import pytest

from cellseg.errors import Notice, UserError
from search.storage import lease as lease_module
from search.storage.lease import LEASE, is_held, leased, require_lease
from search.storage.lock import study_lock
from search.storage.store import StudyStore
from search.storage.tables import TrialRow

BEAT = 0.05

pytestmark = pytest.mark.filterwarnings("ignore::cellseg.errors.Notice")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", BEAT)


@pytest.fixture
def no_locks(monkeypatch, quick):
    refuse_locks(monkeypatch, errno.ENOSYS)


def refuse_locks(monkeypatch, number: int) -> None:
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def dead_lease(path, *, pid: int = 1, host: str = "far-away", machine: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"process {pid} on {host}\n{machine}\n0123abcd\n{7:012d}\n")


def other_process(results, *, seconds: float, end: str = "") -> subprocess.Popen:
    """Another process that holds the study 'cells' on a file system without locks, and says so."""
    code = f"""
        import errno, fcntl, os, time
        from pathlib import Path
        from search.storage import lease, lock

        def flock(*_):
            raise OSError(errno.ENOSYS, "Function not implemented")

        fcntl.flock, lease.BEAT_SECONDS = flock, {BEAT}
        with lock.study_lock(Path({str(results)!r}), "cells"):
            print("held", flush=True)
            time.sleep({seconds})
            {end}
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_two_processes_cannot_have_one_study(tmp_path, monkeypatch, quick, number):
    refuse_locks(monkeypatch, number)
    holder = other_process(tmp_path, seconds=60)
    try:
        match = rf"study 'cells': one command at a time may work on it, but process {holder.pid} on \S+ does\. Wait"
        with pytest.raises(UserError, match=match), study_lock(tmp_path, "cells"):
            pass
        with study_lock(tmp_path, "others"):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_machine_with_locks_respects_the_lease_of_one_without(tmp_path, quick):
    holder = other_process(tmp_path, seconds=60)
    try:
        with pytest.raises(UserError, match=rf"but process {holder.pid} on"), study_lock(tmp_path, "cells"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with study_lock(tmp_path, "cells"):
        pass


def test_a_lease_that_was_given_back_leaves_nothing(tmp_path, no_locks):
    for _ in range(2):
        with study_lock(tmp_path, "cells"):
            assert (tmp_path / "cells" / LEASE).exists()
        assert [path.name for path in (tmp_path / "cells").iterdir()] == [".lock"]


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path, no_locks, monkeypatch):
    holder = other_process(tmp_path, seconds=0, end="os._exit(9)")
    assert holder.wait(60) == 9
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 1000)
    with study_lock(tmp_path, "cells"):
        pass


def test_the_lease_of_a_dead_machine_is_free_after_a_while_whatever_its_clock_says(tmp_path, no_locks):
    path = tmp_path / "cells" / LEASE
    dead_lease(path)
    os.utime(path, (time.time() + 10**6,) * 2)
    started = time.monotonic()
    with (
        pytest.warns(Notice, match=r"process 1 on far-away worked here\. Watching for up to"),
        study_lock(tmp_path, "cells"),
    ):
        assert time.monotonic() - started >= lease_module.MISSED_BEATS * BEAT
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_the_same_number_of_a_process_in_another_container_proves_nothing(tmp_path, quick):
    path = tmp_path / LEASE
    dead_lease(path, pid=2**22 + 1, machine="another boot 4026531836")
    started = time.monotonic()
    assert is_held(path) is None
    assert time.monotonic() - started >= lease_module.MISSED_BEATS * BEAT


def test_a_lease_that_is_given_back_while_somebody_watches_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.5)
    path = tmp_path / LEASE
    dead_lease(path)
    threading.Timer(0.3, path.unlink).start()
    started = time.monotonic()
    assert is_held(path) is None
    assert time.monotonic() - started < 0.5 * lease_module.MISSED_BEATS


def test_of_several_that_find_a_dead_lease_one_gets_it(tmp_path, no_locks):
    dead_lease(tmp_path / "cells" / LEASE)
    told, gate = [], threading.Event()

    def compete() -> None:
        try:
            with leased(tmp_path / "cells" / LEASE, "cells"):
                told.append("got it")
                gate.wait(30)
        except UserError as error:
            told.append(str(error))
            gate.set()

    rivals = [threading.Thread(target=compete) for _ in range(2)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(60)
    assert sorted(text == "got it" for text in told) == [False, True], told


def test_a_new_holders_file_comes_back_if_a_late_watcher_took_it_for_the_dead_one(tmp_path):
    path = tmp_path / LEASE
    path.write_bytes(b"of the new holder")
    lease_module._remove(path, b"of the dead one")
    assert path.read_bytes() == b"of the new holder"
    assert [file.name for file in tmp_path.iterdir()] == [LEASE]


def test_who_lost_the_lease_while_it_stood_still_writes_nothing(tmp_path, no_locks):
    row = TrialRow(number=0, state="RUNNING", params="{}", config="{}", seed=0)
    with ExitStack() as stack:
        stack.enter_context(study_lock(tmp_path, "cells"))
        store = StudyStore.create(tmp_path / "cells", {})
        path = tmp_path / "cells" / LEASE
        path.unlink()
        dead_lease(path, pid=77, host="node2")
        with pytest.raises(UserError, match=r"but process 77 on node2 took the study over while this one stood still"):
            store.put_trial(row)
        assert StudyStore.open(store.folder).trials() == []
    assert path.read_text().startswith("process 77 on node2"), "the other one's file stays"


def test_without_a_lease_writing_asks_for_none(tmp_path):
    require_lease(tmp_path)


def test_locks_that_fail_otherwise_are_no_reason_to_go_on(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.EIO)
    with (
        pytest.raises(UserError, match=r"\.lock: the study must be locked before it is written, but got 'Input/output"),
        study_lock(tmp_path, "cells"),
    ):
        pass
