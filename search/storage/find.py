"""Studies in a results folder: their names, and the one that is meant."""

import re
import warnings
from pathlib import Path

from cellseg.errors import Notice, UserError
from search.storage.backup import backup_of
from search.storage.fetch import fetch_studies, fetch_study
from search.storage.store import StudyStore, read_study
from search.storage.tables import read_table
from search.storage.trial_table import read_trials, trials_file

GENERATED = "generated"
"""Folder beside the studies that holds generated cells."""
PRETRAINED = "pretrained"
"""Folder beside the studies that holds pretrained weights, laid out as ``$TORCH_HOME`` is."""
RESERVED = (GENERATED, PRETRAINED)
"""Names that no study can have."""


def check_name(name: str) -> None:
    """Refuse a study name that is no plain folder name, as a UserError."""
    if name in RESERVED or not re.fullmatch(r"\w[\w .+-]{0,79}", name):
        raise UserError(
            "--study: must be 1 to 80 letters, digits, spaces or any of _.+-, begin with a letter, digit or _, and not "
            f"be {' or '.join(map(repr, RESERVED))}, but got '{name}'. Choose another name."
        )


def weights_folder(results: Path) -> Path:
    """Return the folder of weights beside the studies. Trials look there first, on whatever machine they run."""
    return results.resolve() / PRETRAINED


def list_studies(results: Path) -> list[StudyStore]:
    """The studies in a results folder, most recent first: those with a result, then those without. Other folders are
    skipped; damaged studies too, with a :class:`cellseg.errors.Notice`."""
    fetch_studies(results)
    return [store for folder in _study_folders(results) if (store := _open(folder)) is not None]


def find_study(results: Path, name: str | None) -> StudyStore:
    """The study of that name, or the most recent one.

    Raises:
        UserError: no such study, a name that none can have, or a study that cannot be read.
    """
    if name is None:
        return latest_study(results)
    check_name(name)
    fetch_study(results / name)
    return StudyStore.open(results / name)


def latest_study(results: Path) -> StudyStore:
    """The most recent study that has a result, a trial with a value; where none has, the most recent one.

    A damaged study is skipped with a :class:`cellseg.errors.Notice`.

    Raises:
        UserError: there is none that can be read.
    """
    fetch_studies(results)
    folders = list(_study_folders(results))
    for folder in folders:
        if (store := _open(folder)) is not None:
            return store
    if damaged := sorted(file.parent for file in Path(results).glob("*/study.json")):
        return StudyStore.open(damaged[0])  # or rather its error
    raise UserError(f"{results}: must hold a study, but got none. Run python -m search.run SPACE.yaml first.")


def _open(folder: Path) -> StudyStore | None:
    try:
        return StudyStore.open(folder)
    except UserError as error:
        _skip(error)
        return None


def _study_folders(results: Path) -> list[Path]:
    active = {}
    for file in Path(results).glob("*/study.json"):
        try:
            active[file.parent] = _last_activity(file.parent)
        except UserError as error:
            _skip(error)
    return sorted(active, key=active.__getitem__, reverse=True)


def _skip(error: UserError) -> None:
    warnings.warn(f"{error} This study was skipped.", Notice, stacklevel=3)


def _last_activity(folder: Path) -> tuple[bool, bool, str]:
    """Whether it has a result; whether it has trials (one that could not start has none); and when one of them started
    or ended, or its description was written. Copying keeps that, unlike file times."""
    has_result = has_trials = False
    times = [str(read_study(folder / "study.json")["written"])]
    if trials_file(folder).exists():
        changing, parts = read_trials(folder, lambda path, schema: read_table(path, schema, backup_of(path, folder)))
        for table in (changing, *parts):
            has_trials |= table.num_rows > 0
            has_result |= table["metric"].null_count < table.num_rows
            times += [time for name in ("started", "ended") for time in table[name].to_pylist() if time]
    return has_result, has_trials, max(times)
