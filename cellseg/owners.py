"""Owners: the process that scratch in a shared folder belongs to, or that alone may write into the folder of a run."""

import os
import platform
import secrets
from pathlib import Path

from cellseg.errors import UserError
from cellseg.files import atomic_path


def owner_mark() -> str:
    """Return the mark of this process: ``PID-HOST``."""
    return f"{os.getpid()}-{platform.node()}"


def is_gone(mark: str) -> bool:
    """Say whether the process with this mark has ended. Of one on another host nothing is known: it may be there."""
    pid, _, host = mark.partition("-")
    if host != platform.node() or not pid.isdecimal():
        return False
    return has_ended(int(pid))


def has_ended(pid: int) -> bool:
    """Say whether no process of this machine has the number ``pid``."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # somebody else's, or no number of a process
    return False


class SupersededError(UserError):
    """Another process has claimed the folder since. Nothing more may be written there."""


class Claim:
    """The claim of one process on the folder of a run; a new one takes the place of any other.

    A search starts a trial elsewhere when its machine no longer answers. That machine may have lost nothing but its
    network: the trial's old process then trains on, and may still reach the storage.

    Args:
        path: the file that names the owner.
    """

    def __init__(self, path: Path):
        self.name = secrets.token_hex(4)
        """A part for the names of this process's files, so that they are never those of another."""
        self._path = path
        with atomic_path(path) as temporary:
            temporary.write_text(self.name)

    @property
    def holds(self) -> bool:
        """Whether nobody has claimed the folder since, nor deleted it."""
        try:
            return self._path.read_text() == self.name
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raise :class:`SupersededError` if the claim does not hold."""
        if not self.holds:
            raise SupersededError(
                f"{self._path.parent}: must be written by one process, but got another that began later. Let that one "
                "finish, or choose another folder."
            )
