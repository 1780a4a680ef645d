"""What a tracker is, and what a run in one consists of."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from search.storage.tables import EpochRow, TrialRow

GIB = 2**30


class Tracker(Protocol):
    """A tool that holds a run for each trial. All calls come from one thread, which may wait for the tool.

    Whatever is raised ends the tracker, and not the search.
    """

    def ended(self) -> set[int]:
        """Return the trials whose runs are complete."""

    def begin(self, row: TrialRow) -> int:
        """Open the run of a trial, new or to be continued; return the last epoch that it holds, 0 for none."""

    def epoch(self, row: EpochRow, when: float) -> None:
        """Add an epoch to the open run of its trial.

        Args:
            when: the time of its end, in seconds since 1970.
        """

    def end(self, row: TrialRow) -> None:
        """Add params and result to the open run of a trial, and complete it."""

    def close(self) -> None:
        """Write what is left. Open runs are continued another time."""


def scalars(row: EpochRow) -> Iterator[tuple[str, float]]:
    """Yield the numbers of an epoch by name: validation metrics under their own, losses under ``train/``, and what the
    epoch took under ``run/``. Numbers that are not known are left out."""
    found: dict[str, float | None] = dict(row.metrics)
    found |= {f"train/{name}": value for name, value in row.losses.items()}
    found |= {
        "run/seconds": row.seconds,
        "run/images_per_second": row.images_per_second,
        "run/learning_rate": row.learning_rate,
        "run/memory_gib": None if row.peak_memory_bytes is None else row.peak_memory_bytes / GIB,
    }
    for name, value in found.items():
        if value is not None and math.isfinite(value):
            yield name, value


def flat_params(row: TrialRow) -> dict[str, Any]:
    """Return the sampled values of a trial; what is neither number, text nor boolean as text."""
    params: Mapping[str, Any] = json.loads(row.params)
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in params.items()}


def run_name(number: int) -> str:
    """Name the run of a trial as the board names the trial."""
    return f"t{number:04d}"


class EndedList:
    """A file that lists the trials whose runs are complete, for tools that cannot be asked.

    A kill between a run's end and its line here lets the run be written once more, never twice as one.
    """

    def __init__(self, folder: Path):
        self._path = folder / "ended"

    def read(self) -> set[int]:
        """Return the numbers in the file; none without one."""
        if not self._path.exists():
            return set()
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]  # a line that a kill cut has no end
        return {int(line) for line in lines}

    def add(self, number: int) -> None:
        """Append a number."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{number}\n")


def remove_folder(folder: Path) -> None:
    """Remove the folder of a run that is written anew, if there is one."""
    if folder.exists():
        shutil.rmtree(folder)
