"""The output of a trial's process, kept where the study finds it: the process writes straight into the trial's log."""

import os
import platform
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import ray

from search.storage.trial_logs import MAX_BYTES, Attempt, header, log_beside


class TrialLog:
    """Sends standard output and error of this process, those of C++ and of loader processes too, into one file.

    Only in a process that Ray started for an actor: any other one has an output that people look at. Nothing fails
    where the file cannot be written: output then goes where it went before.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._in_worker = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None

    def begin(self, study: str, number: int, checkpoints: Path) -> None:
        """Continue in the log of the trial that has its checkpoints there."""
        if not self._in_worker:
            return
        path = log_beside(checkpoints)
        attempt = Attempt(
            started=datetime.now(UTC).isoformat(timespec="seconds"), node=platform.node(), pid=os.getpid()
        )
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            if self._path is None:
                sys.stdout.write(f"the output goes on in {path}\n")  # for those who look into Ray's own logs
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.close(file)
            self._path = path
            self.note(header(number, study, attempt))

    def note(self, text: str) -> None:
        """Write lines into the log, if there is one."""
        if self._path is not None:
            with suppress(OSError):
                os.write(2, f"{text.rstrip()}\n".encode(errors="replace"))

    def trim(self) -> None:
        """Keep the log within its size."""
        if self._path is None:
            return
        with suppress(OSError):
            if (size := os.fstat(2).st_size) > MAX_BYTES:
                start = size - MAX_BYTES // 2
                # Every writer appends, so that what is written meanwhile comes after it.
                tail = os.pread(2, size - start, start).partition(b"\n")[2]
                first = os.pread(2, 4096, 0).partition(b"\n")[0]
                os.ftruncate(2, 0)
                os.write(2, first + b"\n[... cut ...]\n" + tail)
