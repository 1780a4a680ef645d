"""The lock of a study: one process writes to it."""

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from cellseg.errors import UserError
from cellseg.files import is_storage_error, storage_error
from search.storage.fetch import fetch_study
from search.storage.lease import LEASE, is_held, leased, taken
from search.storage.remote import remote_study
from search.storage.remote_lease import leased_remotely

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What flock says on a file system without locks, or (ENOLCK) whose lock service is not there."""


@contextmanager
def study_lock(results: Path, name: str) -> Iterator[None]:
    """Keep other commands from writing to the study for the time of the block.

    The system's lock where the file system has locks: a killed process loses it at once. Elsewhere a lease
    (:mod:`search.storage.lease`), which is free again half a minute after its holder died.

    A study in an object store has a lease there, and what the store holds is fetched once this process has it.

    Raises:
        UserError: another command works on the study, or its folder cannot be written.
    """
    folder = results / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        if is_storage_error(error):
            raise storage_error(error, folder) from error
        raise UserError(
            f"{folder}: the folder must be writable, but got '{error.strerror}'. Choose another --results DIR."
        ) from error
    with file, ExitStack() as held:
        if not _flock(file, folder):
            held.enter_context(leased(folder / LEASE, name))
        elif (holder := is_held(folder / LEASE)) is not None:  # by a machine that sees the folder without locks
            raise taken(name, holder)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        if (remote := remote_study(folder)) is not None:
            held.enter_context(leased_remotely(remote, folder, name))
            fetch_study(folder)
        yield


def _flock(file: IO[str], folder: Path) -> bool:
    """Lock the file; False where the file system has no locks.

    Raises:
        UserError: another process holds it, or it cannot be locked for any other reason.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise taken(folder.name, file.read() or "another process") from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise UserError(
            f"{folder / '.lock'}: the study must be locked before it is written, but got '{error.strerror}'. "
            "Mount the file system with locks, or choose another --results DIR."
        ) from error
    return True
