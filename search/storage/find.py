"""Studies in a results folder: their names, and the one that is meant."""

import re
from pathlib import Path

from cellseg.errors import UserError
from search.storage.store import StudyStore, read_study
from search.storage.tables import TRIAL_SCHEMA, read_table

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
    """The studies in a results folder, most recent first. Other folders are skipped.

    Raises:
        UserError: a study that cannot be read.
    """
    return [StudyStore.open(folder) for folder in _study_folders(results)]


def find_study(results: Path, name: str | None) -> StudyStore:
    """The study of that name, or the most recent one.

    Raises:
        UserError: no such study, a name that none can have, or a study that cannot be read.
    """
    if name is None:
        return latest_study(results)
    check_name(name)
    return StudyStore.open(results / name)


def latest_study(results: Path) -> StudyStore:
    """The most recent study.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    folders = _study_folders(results)
    if not folders:
        raise UserError(f"{results}: must hold a study, but got none. Run python -m search.run SPACE.yaml first.")
    return StudyStore.open(folders[0])


def _study_folders(results: Path) -> list[Path]:
    active = {file.parent: _last_activity(file.parent) for file in Path(results).glob("*/study.json")}
    return sorted(active, key=active.__getitem__, reverse=True)


def _last_activity(folder: Path) -> tuple[bool, str]:
    """Whether it has trials (one that could not start has none, and nothing to export), and when one of them started or
    ended, or its description was written. Copying keeps that, unlike file times."""
    has_trials = False
    times = [str(read_study(folder / "study.json")["written"])]
    trials = folder / "trials.parquet"
    if trials.exists():
        table = read_table(trials, TRIAL_SCHEMA)
        has_trials = table.num_rows > 0
        times += [time for name in ("started", "ended") for time in table[name].to_pylist() if time]
    return has_trials, max(times)
