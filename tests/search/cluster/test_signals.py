"""Signals, in a process whose main thread is busy or cannot be woken."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes import make_report, make_study

from cellseg.cli import EXIT_INTERRUPTED
from search.cluster.signals import descendants, stop_on_signals
from search.storage.store import StudyStore

SCRIPT = """
import ctypes, subprocess, time
from pathlib import Path
from search.cluster import signals

signals.GRACE_SECONDS = {grace}
saved = Path({folder!r}) / "saved"

def interrupt():
    {interrupt}
    saved.touch()

child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
with signals.stop_on_signals(interrupt, lambda: print("last words", flush=True)):
    print(child.pid, flush=True)
    print("ready", flush=True)
    {busy}
print("the block ended", flush=True)
{after}
"""
DEAF = "ctypes.CDLL(None).sleep(300); ctypes.CDLL(None).sleep(300); ctypes.CDLL(None).sleep(300)"
"""Python's own handlers never run in it: C waits, as Ray does for a cluster that is gone."""
POLLS = """
    while not saved.exists():
        time.sleep(0.01)
"""


class Process:
    """A search without Ray and without a study."""

    def __init__(
        self,
        folder: Path,
        busy: str,
        *,
        after: str = "",
        interrupt: str = "pass",
        grace: float = 60.0,
        before: tuple[str, ...] = (),
    ):
        script = SCRIPT.format(folder=str(folder), busy=busy, after=after, interrupt=interrupt, grace=grace)
        self._process = subprocess.Popen(
            [*before, sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._child = int(self._process.stdout.readline())
        assert self._process.stdout.readline() == "ready\n"
        self._saved = folder / "saved"

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def says(self) -> str:
        """The next line on standard error."""
        assert self._process.stderr is not None
        return self._process.stderr.readline()

    def wait_until_saved(self) -> None:
        while not self._saved.exists():
            assert self._process.poll() is None
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Exit status, and the rest of the output."""
        out, _ = self._process.communicate(timeout=100)
        return self._process.returncode, out

    def child_dies(self, seconds: float = 20) -> bool:
        deadline = time.monotonic() + seconds
        while _lives(self._child) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not _lives(self._child)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_process_that_hangs_saves_at_once_and_leaves_in_time_with_all_it_started(tmp_path, sent):
    process = Process(tmp_path, DEAF, grace=3.0)
    began = time.monotonic()
    process.send(sent)
    assert "topping" in process.says()
    process.wait_until_saved()
    assert time.monotonic() - began < 3, "before the deadline, whatever the main thread waits for"
    assert process.end() == (EXIT_INTERRUPTED, "last words\n")
    assert time.monotonic() - began >= 3
    assert process.child_dies()


def test_a_second_ctrl_c_leaves_at_once_with_everything_saved(tmp_path):
    process = Process(tmp_path, DEAF)
    began = time.monotonic()
    process.send(signal.SIGINT)
    assert process.says() == "Stopping; Ctrl-C again leaves at once ...\n"
    process.send(signal.SIGINT)
    assert process.end() == (EXIT_INTERRUPTED, "last words\n")
    assert time.monotonic() - began < 50
    assert (tmp_path / "saved").exists()
    assert process.child_dies()


def test_a_second_sigterm_does_not_cut_the_end_short(tmp_path):
    process = Process(tmp_path, POLLS, after="time.sleep(1)")
    process.send(signal.SIGTERM)
    assert process.says() == "Stopping: got SIGTERM ...\n"
    process.send(signal.SIGTERM)
    assert process.end() == (0, "the block ended\n")


def test_what_hangs_after_the_block_is_left_too(tmp_path):
    process = Process(tmp_path, POLLS, after=DEAF, grace=3.0)
    process.send(signal.SIGTERM)
    assert process.end() == (EXIT_INTERRUPTED, "the block ended\nlast words\n")


def test_a_hang_up_that_was_ignored_stays_ignored(tmp_path):
    process = Process(tmp_path, "time.sleep(2)", grace=0.5, before=("nohup",))
    process.send(signal.SIGHUP)
    assert process.end() == (0, "the block ended\n")
    assert not (tmp_path / "saved").exists()


def test_an_interruption_that_fails_is_told_and_the_process_still_leaves(tmp_path):
    process = Process(tmp_path, DEAF, interrupt="1 / 0", grace=1.0)
    process.send(signal.SIGTERM)
    assert process.says() == "error: division by zero\n"
    assert process.end()[0] == EXIT_INTERRUPTED


def test_a_signal_in_the_middle_of_an_event_waits_for_its_end(tmp_path, monkeypatch):
    """Half of a report is on disk, and the signal comes: the table gets the whole report, and then the interruption."""
    study = make_study(tmp_path)
    study.propose(), study.propose()
    real = study.store.add_epoch

    def interrupted(row) -> None:
        real(row)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        assert not study.must_stop

    monkeypatch.setattr(study.store, "add_epoch", interrupted)
    with study.store.buffered(600), stop_on_signals(study.interrupt):
        assert study.report(0, make_report(1, 0.5))
        while not study.must_stop:
            time.sleep(0.01)
        assert not study.report(0, make_report(2, 0.6)), "nothing is taken in any more"
        study.end(1, "lost", "Ray is gone")
        assert study.propose() is None
        assert not study.is_over
        rows = StudyStore.open(tmp_path / "study").trials()
    assert [(row.state, row.epochs, row.metric) for row in rows] == [("INTERRUPTED", 1, 0.5), ("INTERRUPTED", 0, None)]
    assert StudyStore.open(tmp_path / "study").trials() == rows


def test_afterwards_signals_mean_what_they_meant_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    threads = threading.active_count()
    calls = []
    with stop_on_signals(lambda: calls.append("stop")):
        os.kill(os.getpid(), signal.SIGTERM)
        while not calls:
            time.sleep(0.01)
    assert calls == ["stop"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1


def test_a_caller_that_lives_on_gets_the_second_ctrl_c_itself():
    calls = []
    with pytest.raises(KeyboardInterrupt), stop_on_signals(lambda: calls.append("stop")):
        os.kill(os.getpid(), signal.SIGINT)
        while not calls:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert calls == ["stop"]


def test_descendants_are_all_that_a_process_started():
    script = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    grandchild = int(child.stdout.readline())
    assert set(descendants(os.getpid())) >= {child.pid, grandchild}
    assert descendants(child.pid) == [grandchild]
    os.kill(grandchild, signal.SIGKILL)
    child.wait(10)
