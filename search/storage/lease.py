"""A lease on a folder, for file systems without locks: a file that its holder changes every few seconds.

Whoever wants the folder watches that file. If its content does not change for half a minute by the watcher's own clock,
the holder is dead: clocks of other machines are not trusted, and file times not read. A holder that only slept finds
out before it writes (:func:`require_lease`).
"""

import os
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from cellseg.errors import Notice, UserError
from cellseg.files import is_storage_error, storage_error
from cellseg.owners import has_ended

LEASE = ".lease"
"""The file, in the folder that it is for."""
BEAT_SECONDS, MISSED_BEATS = 5.0, 6
"""The holder changes the file this often; without so many changes in a row it is dead."""


class Holding(Protocol):
    """A lease that this process took."""

    def is_mine(self) -> bool:
        """Whether it still has it."""

    def holder(self) -> bytes | None:
        """The content of the lease's file now; None if it is gone."""


_held: dict[Path, Holding] = {}
"""The leases of this process by their files."""


@contextmanager
def holding(path: Path, held: Holding) -> Iterator[None]:
    """Let :func:`require_lease` know of a lease for the time of the block."""
    _held[path.resolve()] = held
    try:
        yield
    finally:
        del _held[path.resolve()]


@contextmanager
def leased(path: Path, study: str) -> Iterator[None]:
    """Hold the lease for the time of the block.

    Args:
        study: the study's name, for messages.

    Raises:
        UserError: another process holds it, or its file cannot be written.
    """
    path = path.resolve()
    try:
        while (lease := _Lease.take(path)) is None:
            if (holder := is_held(path)) is not None:
                raise taken(study, holder)
    except OSError as error:
        if is_storage_error(error):
            raise storage_error(error, path) from error
        raise UserError(
            f"{path}: must be writable, but got '{error.strerror}'. Choose another --results DIR."
        ) from error
    with holding(path, lease):
        try:
            yield
        finally:
            lease.release()


def is_held(path: Path) -> str | None:
    """Say who holds a lease; None if nobody does. It may watch for half a minute; the file of a dead holder is gone
    then."""
    content = _read(path)
    if content is None:
        return None
    holder = Content.parse(content)
    if not holder.is_dead:
        seconds = BEAT_SECONDS * MISSED_BEATS
        warnings.warn(
            f"{path.parent}: {holder.name} worked here. Watching for up to {seconds:.0f} s whether it still does.",
            Notice,
            stacklevel=3,
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 5)
            if (now := _read(path)) is None:
                return None
            if now != content:
                return Content.parse(now).name
    _remove(path, content)
    return None


def require_lease(folder: Path) -> None:
    """Return if this process may write to a folder: it never had a lease on it, or still has it.

    Raises:
        UserError: another process took it over, since this one had stopped for too long.
    """
    lease = _held.get(folder.resolve() / LEASE) if _held else None
    if lease is not None and not lease.is_mine():
        content = lease.holder()
        other = Content.parse(content).name if content else "another process"
        raise UserError(
            f"{folder}: one command at a time may write, but {other} took the study over while this one stood still. "
            "Leave it to that one; nothing was written."
        )


def taken(study: str, holder: str) -> UserError:
    """Make the error for whoever comes second."""
    return UserError(
        f"study '{study}': one command at a time may work on it, but {holder} does. "
        "Wait for it, or choose another --study NAME."
    )


class Content:
    """The content of a lease's file: lines for the holder, its machine, a token of its own, and a counter."""

    def __init__(self, name: str, machine: str, token: str):
        self.name = name
        """The holder, for people."""
        self.machine = machine
        self.token = token

    @classmethod
    def own(cls) -> "Content":
        return cls(f"process {os.getpid()} on {platform.node()}", _machine(), uuid.uuid4().hex)

    @classmethod
    def parse(cls, content: bytes) -> "Content":
        lines = [*content.decode(errors="replace").splitlines(), "", "", ""]
        return cls(lines[0] or "another process", lines[1], lines[2])

    def text(self, beat: int) -> bytes:
        """Of the same length for every beat, so that it is overwritten in place."""
        return f"{self.name}\n{self.machine}\n{self.token}\n{beat:012d}\n".encode()

    @property
    def is_dead(self) -> bool:
        """Whether the holder is known to be dead, without a wait: a process of this machine that is not there."""
        pid = self.name.split()[1:2]
        if not self.machine or self.machine != _machine() or not pid or not pid[0].isdecimal():
            return False
        return has_ended(int(pid[0]))


class _Lease:
    """A lease that this process holds. A thread changes the file."""

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self._descriptor = descriptor
        self._content = Content.own()
        self._stopped = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, path: Path) -> "_Lease | None":
        """Create the file; None if it is there already."""
        try:
            return cls(path, os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
        except FileExistsError:
            return None

    def holder(self) -> bytes | None:
        """The content of the file now; None if it is gone."""
        return _read(self.path)

    def is_mine(self) -> bool:
        """Whether the file is there and names this holder. A file that cannot be read for now is given the benefit of
        the doubt: who would take it over could not either."""
        try:
            content = _read(self.path)
        except OSError:
            return True
        return content is not None and Content.parse(content).token == self._content.token

    def release(self) -> None:
        """Stop beating and remove the file, unless it is another's by now."""
        self._stopped.set()
        self._thread.join()
        if self.is_mine():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _keep_beating(self) -> None:
        beat = 0
        while not self._stopped.wait(BEAT_SECONDS):
            beat += 1
            with suppress(OSError):  # the next beat tries again, and the tables' next write tells the user
                self._beat(beat)

    def _beat(self, beat: int) -> None:
        # Through the descriptor: never into a file that took this one's name.
        os.pwrite(self._descriptor, self._content.text(beat), 0)
        os.fsync(self._descriptor)


def _read(path: Path) -> bytes | None:
    """The content now; None if there is no file. Opening makes a network's file system ask again."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _remove(path: Path, content: bytes) -> None:
    """Remove the file of a dead holder. Of several that try one succeeds; a new holder's file comes back."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != content:
        with suppress(OSError):  # taken once more, or no links here: its holder finds out before it writes
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _machine() -> str:
    """What tells this machine, and container, since its start from any other; empty where the system does not say."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
