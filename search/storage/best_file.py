"""``best.yaml``: the config of a study's best trial, as a file that ``python -m cellseg.train`` takes."""

import json
from pathlib import Path
from typing import Any

import yaml

from cellseg.files import atomic_path
from search.storage.tables import TrialRow

BEST_FILE = "best.yaml"


def told(row: TrialRow) -> tuple[object, ...]:
    """What the file tells of a trial: the file of two equal ones is the same."""
    return row.number, row.metric, row.best_epoch, row.config


def write_best(folder: Path, row: TrialRow, metric: str) -> None:
    """Write the whole config of a trial, each field under its part, with a comment that says where it is from.

    Raises:
        StorageError: storage failed; the file that was there is whole.
    """
    value = "not known" if row.metric is None else f"{row.metric:.4f}"
    epoch = "" if row.best_epoch is None else f" in epoch {row.best_epoch}"
    comment = (
        f"# The best config of the study {folder.name}: trial t{row.number:04d}, validation {metric} {value}{epoch}.\n"
        f"# Train it on all labelled images: cellseg-search train {BEST_FILE} --all-images\n"
    )
    nested: dict[str, dict[str, Any]] = {}
    for key, setting in json.loads(row.config).items():
        part, _, name = key.partition(".")
        nested.setdefault(part, {})[name] = setting
    with atomic_path(folder / BEST_FILE) as temporary:
        temporary.write_text(comment + yaml.safe_dump(nested, sort_keys=False, allow_unicode=True), encoding="utf-8")
