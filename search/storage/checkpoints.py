"""The checkpoints of a study: which stay on disk, and the one that a trial kept."""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.errors import UserError
from search.storage.tables import TrialRow

if TYPE_CHECKING:
    from search.storage.store import StudyStore


class Checkpoints:
    """The folders of trials' checkpoints, below a study's."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._deleted: set[int] = set()  # for good: ended trials

    def folder(self, number: int) -> Path:
        """Return where the checkpoints of a trial are, if it has any. The folder need not exist."""
        return self._folder / f"t{number:04d}"

    def keep(self, best: Collection[int], rows: Iterable[TrialRow]) -> None:
        """Keep the weights of the ``best`` trials and the resumable state of unfinished ones; delete all else.

        Args:
            rows: all trials.
        """
        for row in rows:
            if row.state in {"RUNNING", "INTERRUPTED"} or row.number in self._deleted:
                continue
            if row.number in best:
                shutil.rmtree(self.folder(row.number) / "last", ignore_errors=True)
            else:
                shutil.rmtree(self.folder(row.number), ignore_errors=True)
                self._deleted.add(row.number)


def choose_trial(store: "StudyStore", number: int | None) -> TrialRow:
    """Choose the trial with that number, or the best one.

    Raises:
        UserError: no such trial, none with a value, or its checkpoint was not kept.
    """
    best = store.best_trials(1)
    rows = best if number is None else [row for row in store.trials() if row.number == number]
    if not rows:
        wanted = "a trial with a value" if number is None else f"a trial {number}"
        raise UserError(f"{store.folder}: must hold {wanted}, but got none. Run the search first.")

    from cellseg.checkpoint import has_checkpoint
    from cellseg.training.run import BEST

    row = rows[0]
    if not has_checkpoint(store.checkpoint_folder(row.number) / BEST):
        kept = [r.number for r in store.trials() if has_checkpoint(store.checkpoint_folder(r.number) / BEST)]
        raise UserError(
            f"--trial {row.number}: its checkpoint must have been kept, but got those of {kept} only. "
            "Choose one of them; `keep` in the space says how many stay."
        )
    return row
