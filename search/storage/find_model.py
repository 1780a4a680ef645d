"""The trained model that a word of the command line means: of a study, or a folder of its own."""

from pathlib import Path

from cellseg.errors import UserError

MODEL_HELP = "name of a study, for its best trial; or the folder of a checkpoint or exported model"


def find_model(word: str, trial: int | None, results: Path) -> tuple[Path, str | None]:
    """Find a checkpoint folder; a line about it, where it is that of a study.

    Args:
        word: a checkpoint folder, the folder of a training run or of a study, or a study's name.
        trial: of a study; None for the best.

    Raises:
        UserError: nothing of the kind, or a study without such a checkpoint.
    """
    # Here, since commands want MODEL_HELP at once.
    from cellseg.checkpoint import find_checkpoint, has_checkpoint
    from search.storage.find import list_studies
    from search.storage.kept import choose_trial, kept_checkpoint
    from search.storage.store import StudyStore

    path = Path(word)
    if not StudyStore.exists(path) and has_checkpoint(found := find_checkpoint(path)):
        if trial is not None:
            raise UserError(f"--trial: needs a study, but got the checkpoint {found}. Leave it out.")
        return found, None
    for folder in (path, *([results / word] if path.name == word else [])):
        if StudyStore.exists(folder):
            store = StudyStore.open(folder)
            row = choose_trial(store, trial)
            value = "" if row.metric is None else f", validation {store.metric} {row.metric:.4f}"
            return kept_checkpoint(store, row.number), f"study {store.name}, trial t{row.number:04d}{value}"
    there = ", ".join(store.name for store in list_studies(results)[:5])
    raise UserError(
        f"{word}: must be the folder of a checkpoint or an exported model, or a study in {results}, but got nothing of "
        f"the kind. {f'Studies there: {there}.' if there else 'There is no study.'}"
    )
