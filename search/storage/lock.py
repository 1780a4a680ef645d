"""The lock of a study: one process writes to it."""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellseg.errors import UserError


@contextmanager
def study_lock(results: Path, name: str) -> Iterator[None]:
    """Keep other commands from writing to the study for the time of the block. A killed process loses its lock.

    Raises:
        UserError: another command works on the study, or its folder cannot be written.
    """
    folder = results / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
    except OSError as error:
        raise UserError(
            f"{folder}: the folder must be writable, but got '{error.strerror}'. Choose another --results DIR."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"study '{name}': one command at a time may work on it, but {file.read() or 'another process'} does. "
                "Wait for it, or choose another --study NAME."
            ) from error
        except OSError:
            pass  # a file system without locks: run unprotected rather than not at all
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
