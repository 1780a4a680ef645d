"""Signals that end a search: what was learned is on disk at once, and the process leaves soon, whatever Ray does.

A batch system ends a job by sending SIGTERM to all its processes, Ray's among them; a terminal that closes sends
SIGHUP. Then the main thread may be waiting inside Ray for a cluster that is gone, and Python runs signal handlers in
that thread only. So the interpreter writes the number of a signal into a pipe, which a thread of its own reads.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cellseg.cli import EXIT_INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 8.0
"""So long Ray may take to stop; batch systems kill what is left half a minute after SIGTERM, some after ten seconds."""
FAREWELL_SECONDS = 1.0
"""So long the last words may take: a pipe that nobody reads would block them for ever."""
SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def stop_on_signals(interrupt: Callable[[], Any], on_leave: Callable[[], Any] | None = None) -> Iterator[None]:
    """For the time of the block, call ``interrupt`` at the first SIGINT (Ctrl-C), SIGTERM or SIGHUP.

    It is called in another thread, at once, and must make the block end. A signal that was ignored before, as SIGHUP
    under ``nohup``, stays ignored. Does nothing outside the main thread, which alone may handle signals.

    Args:
        on_leave: None for a caller that lives on: a second Ctrl-C raises KeyboardInterrupt, and afterwards all signals
            mean what they meant before. Otherwise, once a signal came, the process ends itself with
            :data:`~cellseg.cli.EXIT_INTERRUPTED`, and kills what it started, at a second Ctrl-C or if it is still there
            after :data:`GRACE_SECONDS`, also outside the block; this is called before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(interrupt, on_leave)
    watch.start()
    try:
        yield
    finally:
        if not (watch.is_stopping and on_leave is not None):
            watch.end()


class _Watch:
    """The pipe, the thread that reads it, and the deadline."""

    def __init__(self, interrupt: Callable[[], Any], on_leave: Callable[[], Any] | None):
        self._interrupt, self._on_leave = interrupt, on_leave
        self.is_stopping = False
        self._num_interrupts = 0
        self._leaving = threading.Lock()
        # Once a terminal has hung up, nothing can tell that it was one.
        self._terminals = [file for file in (0, 1, 2) if os.isatty(file)]

    def start(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._former_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        former = {number: signal.getsignal(number) for number in SIGNALS}
        self._former = {number: handler for number, handler in former.items() if handler != signal.SIG_IGN}
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        for number in self._former:
            signal.signal(number, self._in_main_thread)

    def end(self) -> None:
        """Let signals mean what they meant before."""
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._former_wakeup)
        os.close(self._write)
        self._thread.join()  # a signal of the last moment is taken in
        os.close(self._read)

    def _in_main_thread(self, number: int, _: FrameType | None) -> None:
        self._num_interrupts += number == signal.SIGINT
        if self._num_interrupts > 1 and self._on_leave is None:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while received := os.read(self._read, 1):
            number = received[0]
            if number not in self._former:
                continue
            if not self.is_stopping:
                self._stop(number)
            elif number == signal.SIGINT and self._on_leave is not None:
                self._leave()

    def _stop(self, number: int) -> None:
        self.is_stopping = True
        if self._on_leave is not None:
            deadline = threading.Timer(GRACE_SECONDS, self._leave)
            deadline.daemon = True
            deadline.start()
        if number == signal.SIGHUP:
            self._forget_terminals()
        again = "; Ctrl-C again leaves at once" if number == signal.SIGINT else ""
        try:
            if number == signal.SIGINT:  # somebody waits for an answer
                _tell(f"Stopping{again} ...")
                self._interrupt()
            else:  # Ray may take this process with it any moment
                self._interrupt()
                _tell(f"Stopping: got {signal.Signals(number).name} ...")
        except Exception as error:  # a disk that is full; what is on it already is what the next search finds
            _tell(f"error: {error}")

    def _forget_terminals(self) -> None:
        """Let later output vanish instead of failing."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for file in self._terminals:
            os.dup2(nowhere, file)
        self._terminals = []

    def _leave(self) -> None:
        assert self._on_leave is not None
        self._leaving.acquire()  # for good: one thread leaves
        farewell = threading.Thread(target=self._on_leave, daemon=True)
        farewell.start()
        farewell.join(FAREWELL_SECONDS)
        for file in self._terminals[-1:]:
            with suppress(OSError):
                os.write(file, SHOW_CURSOR)
        for pid in descendants(os.getpid()):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os._exit(EXIT_INTERRUPTED)


def _tell(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")  # on a screen above the board, which takes its place
        sys.stderr.flush()


def descendants(pid: int) -> list[int]:
    """List the processes that a process started, and those that they started. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # PID (NAME) STATE PARENT ...; a name may hold anything.
            parent = int(file.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    found, pending = [], [pid]
    while pending:
        started = children.get(pending.pop(), [])
        found += started
        pending += started
    return found
