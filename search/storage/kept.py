"""The trial whose kept checkpoint a command works with."""

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
