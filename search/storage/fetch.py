"""Local copies of studies that are in an object store; of any other study there is nothing to fetch."""

import shutil
from pathlib import Path

from search.storage.remote import Remote, remote_results, remote_study

DESCRIPTION = "checkpoint.json"
"""As :data:`cellseg.checkpoint.DESCRIPTION`, which comes with torch."""
_TABLES = ("trials", "epochs")
"""Folders of tables in a study's."""


def fetch_studies(results: Path) -> None:
    """Fetch the tables of all studies that a local folder of results stands for."""
    if (remote := remote_results(results)) is not None:
        for name in remote.folders():
            if remote.exists(f"{name}/study.json"):
                fetch_study(results / name)


def fetch_study(folder: Path) -> None:
    """Make the tables in a study's local folder those of the store; checkpoints there are of earlier runs, and go."""
    if (remote := remote_study(folder)) is None:
        return
    for place in (*_TABLES, "checkpoints", "backup"):
        shutil.rmtree(folder / place, ignore_errors=True)
    for file in ("study.json", "trials.parquet"):
        (folder / file).unlink(missing_ok=True)
    # In this order, no reader misses a row that is moved or added meanwhile.
    for file in ("study.json", "trials.parquet"):
        if remote.exists(file):
            remote.get(file, folder / file)
    for place in _TABLES:
        for name in remote.sizes(place):
            remote.get(name, folder / name)


def fetch_file(folder: Path, name: str) -> None:
    """Fetch one file of a study, if it is there."""
    if (remote := remote_study(folder)) is not None and remote.exists(name):
        remote.get(name, folder / name)


def fetch_checkpoint(study: Remote, number: int, name: str, folder: Path) -> None:
    """Make a local folder the checkpoint ``best`` or ``last`` of a trial; empty if there is none."""
    study.fetch(f"{trial_prefix(number)}/{name}", folder)


def trial_prefix(number: int) -> str:
    """Return the folder of a trial's checkpoints, relative to the study."""
    return f"checkpoints/t{number:04d}"
