"""The end of a search whose storage fails or fills up: that is no trial's fault, and no trial pays for it."""

import shutil
import time
from typing import TYPE_CHECKING

from cellseg.files import StorageError, is_storage_error, storage_error
from cellseg.names import counted

if TYPE_CHECKING:
    from search.storage.store import StudyStore

STORAGE = "storage"
"""The ending of a trial that could not write its checkpoints. It is interrupted and goes on with the next search."""
RESERVED_BYTES = 256 * 2**20
"""Free space that is left for tables, and for whoever else writes there. The checkpoints of the running trials come on
top: while one is replaced, the old and the new one are on disk."""
LOOK_SECONDS = 10.0
"""The time between two looks at the free space."""
SIZES_PER_LOOK = 8
"""Trials whose checkpoints are measured in one look: a thousand at once would take seconds on a network's disk."""


class StorageWatch:
    """Watches the free space of a study, and what its trials tell of their storage.

    Args:
        store: the study's tables; its folder is on the storage to be watched.
    """

    def __init__(self, store: "StudyStore"):
        self._store = store
        self._error: StorageError | None = None
        self._next_look = 0.0
        self._sizes: dict[int, int] = {}  # of trials' checkpoints, in bytes, once they have any

    @property
    def error(self) -> StorageError | None:
        """Why the search must stop; None while it need not. It stays for this search. Cheap: looks are rare."""
        if self._error is None and (now := time.monotonic()) >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._look()
        return self._error

    def end(self, detail: str) -> None:
        """Take in the end of a trial whose storage failed.

        Args:
            detail: the text of a :class:`cellseg.files.StorageError`.
        """
        self._error = self._error or StorageError(*detail.splitlines())

    def _look(self) -> None:
        try:
            usage = shutil.disk_usage(self._store.folder)
        except OSError as error:
            if is_storage_error(error):
                self._error = storage_error(error, self._store.folder)
            return
        if usage.total == 0:
            return  # a file system that does not tell
        running = [row.number for row in self._store.trials() if row.state == "RUNNING"]
        needed = RESERVED_BYTES + self._bytes_of(running)
        if usage.free < needed:
            self._error = StorageError(
                f"{self._store.folder}: must have {_mebibytes(needed)} free for tables and the checkpoints of "
                f"{counted(len(running), 'running trial')}, but got {_mebibytes(usage.free)}. "
                "Free some space, then run the same command again."
            )

    def _bytes_of(self, running: list[int]) -> int:
        """The size of the checkpoints of these trials; one that is not measured yet counts as the largest."""
        unknown = [number for number in running if number not in self._sizes]
        for number in unknown[:SIZES_PER_LOOK]:
            if size := self._store.checkpoint_bytes(number):
                self._sizes[number] = size
        largest = max(self._sizes.values(), default=0)
        return sum(self._sizes.get(number, largest) for number in running)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
