"""The trial whose kept checkpoint a command works with."""

from pathlib import Path

from cellseg.errors import UserError
from search.storage.store import StudyStore
from search.storage.tables import TrialRow


def choose_trial(store: StudyStore, number: int | None) -> TrialRow:
    """Choose the trial with that number, or the best one.

    Raises:
        UserError: no such trial, none with a value, or its checkpoint was not kept.
    """
    best = store.best_trials(1)
    rows = best if number is None else [row for row in store.trials() if row.number == number]
    if not rows:
        wanted = "a trial with a value" if number is None else f"a trial {number}"
        raise UserError(f"{store.folder}: must hold {wanted}, but got none. Run the search first.")
    kept_checkpoint(store, rows[0].number)
    return rows[0]


def kept_checkpoint(store: StudyStore, number: int) -> Path:
    """Return the folder of the best checkpoint of a trial.

    Raises:
        UserError: it was not kept.
    """
    from cellseg.checkpoint import has_checkpoint
    from cellseg.training.run import BEST

    folder = store.checkpoint_folder(number) / BEST
    if not has_checkpoint(folder):
        kept = [row.number for row in store.trials() if has_checkpoint(store.checkpoint_folder(row.number) / BEST)]
        raise UserError(
            f"{store.folder}: trial {number}: its checkpoint must have been kept, but got those of {kept} only. "
            "Choose one of them; `keep` in the space says how many stay."
        )
    return folder
