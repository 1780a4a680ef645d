"""The checkpoints of a study: where they are, and which stay on disk."""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from search.storage.tables import UNFINISHED, TrialRow


class Checkpoints:
    """The folders of trials' checkpoints, below a study's."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._deleted: set[int] = set()  # for good: ended trials

    def folder(self, number: int) -> Path:
        """Return where the checkpoints of a trial are, if it has any. The folder need not exist."""
        return self._folder / f"t{number:04d}"

    def size(self, number: int) -> int:
        """Return the bytes that a trial's checkpoints take; 0 if it has none, or they are being replaced."""
        try:
            files = [path.stat() for path in self.folder(number).glob("*/*") if path.is_file()]
        except OSError:
            return 0
        return sum({stat.st_ino: stat.st_size for stat in files}.values())  # best and last may share their weights

    def keep(self, best: Collection[int], rows: Iterable[TrialRow]) -> None:
        """Keep the weights of the ``best`` trials and the resumable state of unfinished ones; delete all else.

        Args:
            rows: all trials.
        """
        for row in rows:
            if row.state in UNFINISHED or row.number in self._deleted:
                continue
            if row.number in best:
                shutil.rmtree(self.folder(row.number) / "last", ignore_errors=True)
            else:
                shutil.rmtree(self.folder(row.number), ignore_errors=True)
                self._deleted.add(row.number)
