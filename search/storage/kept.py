"""The trial whose kept checkpoint a command works with."""

import warnings
from pathlib import Path

from cellseg.errors import Notice, UserError
from search.storage.store import StudyStore
from search.storage.tables import TrialRow


def choose_trial(store: StudyStore, number: int | None) -> TrialRow:
    """Choose the trial with that number, or the best one whose checkpoint is there.

    The best is the one that the study ranks first, as on its board. It may be running: its best epoch so far is on disk
    like that of any other, and is the best model there is. If its checkpoint is not there (somebody deleted it), the
    next one is chosen, with a :class:`cellseg.errors.Notice`.

    Raises:
        UserError: no such trial, none with a value, or no such checkpoint was kept.
    """
    rows = store.best_trials() if number is None else [row for row in store.trials() if row.number == number]
    if not rows:
        wanted = "a trial with a value" if number is None else f"a trial {number}"
        raise UserError(f"{store.folder}: must hold {wanted}, but got none. Run the search first.")
    chosen = next((row for row in rows if _has_kept(store, row.number)), rows[0])
    kept_checkpoint(store, chosen.number)
    if chosen is not rows[0]:
        warnings.warn(
            f"{store.folder}: trial {rows[0].number} ranks first, but its checkpoint is gone. "
            f"Trial {chosen.number} is the best of those that have one.",
            Notice,
            stacklevel=2,
        )
    return chosen


def best_kept(store: StudyStore, count: int) -> list[TrialRow]:
    """Return up to ``count`` trials whose checkpoint is there, best first."""
    return [row for row in store.best_trials() if _has_kept(store, row.number)][:count]


def kept_checkpoint(store: StudyStore, number: int) -> Path:
    """Return the folder of the best checkpoint of a trial.

    Raises:
        UserError: it was not kept.
    """
    if not _has_kept(store, number):
        kept = [row.number for row in store.trials() if _has_kept(store, row.number)]
        raise UserError(
            f"{store.folder}: trial {number}: its checkpoint must have been kept, but got those of {kept} only. "
            "Choose one of them; `keep` in the space says how many stay."
        )
    from cellseg.checkpoint import BEST  # it imports torch

    return store.fetch_checkpoint(number, BEST)


def _has_kept(store: StudyStore, number: int) -> bool:
    from cellseg.checkpoint import BEST  # it imports torch

    return store.has_checkpoint(number, BEST)
