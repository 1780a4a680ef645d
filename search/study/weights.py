"""The pretrained weights that an experiment can ask for: known, found and fetched before its first trial.

Exactly those files are asked for that some trial may need (:mod:`search.study.possible`).
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from cellseg.errors import Problem, UserError, first_line, raise_all
from cellseg.model.pretrained import (
    Progress,
    Published,
    cache_folder,
    copy_to,
    damage,
    fetch,
    find_published,
    published_weights,
)
from cellseg.names import counted
from search.storage.find import weights_folder
from search.study.experiment import Experiment
from search.study.possible import BACKBONE, DETECTOR, WEIGHTS, WITHOUT_FILE, possible_values


@dataclass(frozen=True)
class Asked:
    """What an experiment can ask for."""

    files: tuple[Published, ...]
    """Files that torchvision and timm publish, in the order of the space's values."""
    paths: tuple[str, ...]
    """Files and checkpoint folders that the user names."""


@dataclass(frozen=True)
class Place:
    """Where a published file is."""

    file: Published
    path: Path | None
    """None: on this machine in no place that is looked at."""
    fault: str | None = None
    """Why it cannot be used, or could not be fetched. None: it is there and whole, or nobody has tried."""


def asked_weights(experiment: Experiment) -> Asked:
    """Find out which weights the experiment's trials can start from.

    Raises:
        UserError: networks that timm does not have, or has no weights of.
    """
    files: dict[Published, None] = {}
    paths: dict[str, None] = {}
    problems: dict[str, None] = {}
    for values in possible_values(experiment, (WEIGHTS, BACKBONE, DETECTOR)):
        weights = values[WEIGHTS]
        if weights not in WITHOUT_FILE:
            paths[weights] = None
            continue
        try:
            file = published_weights(weights, values[BACKBONE], values[DETECTOR])
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            files |= {} if file is None else {file: None}
    raise_all(problems)
    return Asked(tuple(files), tuple(paths))


def places(asked: Asked, folder: Path | None) -> list[Place]:
    """Find the published files in ``folder`` and the caches, and check their hashes."""
    found = []
    for file in asked.files:
        path = find_published(file, folder)
        fault = None if path is None else damage(path)
        found.append(Place(file, path, None if fault is None else f"a damaged file, {path} ({fault})"))
    return found


def describe_weights(experiment: Experiment, results: Path) -> list[str]:
    """Describe in lines for people which weights the experiment can ask for, and which are here. Fetches nothing."""
    asked = asked_weights(experiment)
    lines = []
    if asked.files:
        missing = sum(find_published(file, weights_folder(results)) is None for file in asked.files)
        listed = "`python -m search.commands.weights SPACE --check` lists them"
        state = f"{missing} to be fetched before the first trial; {listed}" if missing else "all on this machine"
        lines.append(f"weights: {counted(len(asked.files), 'file')} of pretrained weights, {state}")
    lines += [f"weights: {path}, which is not here" for path in asked.paths if not Path(path).expanduser().exists()]
    return lines


def provide_weights(
    experiment: Experiment,
    results: Path,
    *,
    travel: bool,
    say: Callable[[str], None],
) -> None:
    """See to it that every trial will find its weights, and fetch what is missing.

    Args:
        travel: trials may run on other machines: put a copy of every file into the folder beside the studies.
        say: takes a line for people about each file that is fetched.

    Raises:
        UserError: all that cannot be had, with the ways out.
    """
    asked = asked_weights(experiment)
    absent = [path for path in asked.paths if not Path(path).expanduser().exists()]
    folder = weights_folder(results)
    before = places(asked, folder)
    found = fetch_missing(before, cache_folder(), say=say)
    problems = [_missing(place) for place in found if place.fault is not None]
    if problems:
        problems.append(_ways_out(len(problems), len(found), results))
    law = "the file or checkpoint folder must exist"
    problems += [Problem(WEIGHTS, law, f"nothing at '{path}'", "Check the path.") for path in absent]
    raise_all(problems)
    # Trials look there first, so a damaged file there must not stay.
    spoilt = [old.fault is not None and old.path is not None and folder in old.path.parents for old in before]
    copy_all([place for place, bad in zip(found, spoilt, strict=True) if travel or bad], folder)


def fetch_missing(found: Iterable[Place], folder: Path, *, say: Callable[[str], None]) -> list[Place]:
    """Fetch the files that are missing or damaged into ``folder``. A machine that does not answer is asked once."""
    silent: dict[str, str] = {}
    settled = []
    for place in found:
        if place.path is not None and place.fault is None:
            settled.append(place)
            continue
        file, host = place.file, place.file.host
        if host in silent:
            settled.append(Place(file, None, silent[host]))
            continue
        try:
            path = fetch(file, folder, _show_progress(file))
        except OSError as error:
            reason = error.reason if isinstance(error, URLError) else first_line(error)
            fault = f"'{reason}' from {host}"
            if isinstance(error, URLError | TimeoutError | ConnectionError):  # others say nothing about other files
                silent[host] = fault
            settled.append(Place(file, None, fault if place.fault is None else f"{place.fault} and {fault}"))
        else:
            say(f"weights: fetched {path.name} ({math.ceil(path.stat().st_size / 1e6)} MB), the {file.of}")
            settled.append(Place(file, path))
    return settled


def copy_all(found: Iterable[Place], folder: Path) -> list[Path]:
    """Copy files that were found into ``folder``, unless they are there; their places there.

    Raises:
        UserError: every file that could not be copied.
    """
    copies, problems = [], []
    for place in found:
        assert place.path is not None, "only what was found is copied"
        try:
            copies.append(copy_to(place.file, place.path, folder))
        except OSError as error:
            law = "the folder of weights must take a copy of each file"
            problems.append(
                Problem(str(folder), law, f"'{first_line(error)}' for {place.path.name}", "Check free space.")
            )
    raise_all(problems)
    return copies


def _show_progress(file: Published) -> Progress:
    """Make what shows on a terminal how much of the file has come."""

    def show(done: int, total: int | None) -> None:
        of = "" if total is None else f" of {total / 1e6:.0f}"
        sys.stderr.write("\r\033[K" if done == total else f"\r{file.name}: {done / 1e6:.0f}{of} MB")
        sys.stderr.flush()

    return show if sys.stderr.isatty() else lambda done, total: None


def _missing(place: Place) -> Problem:
    size = f", {place.file.megabytes:.0f} MB" if place.file.megabytes else ""
    law = f"{place.file.name} ({place.file.of}{size}) must be in a cache or downloadable"
    return Problem(WEIGHTS, law, str(place.fault))


def _ways_out(missing: int, total: int, results: Path) -> Problem:
    folder = weights_folder(results)
    return Problem(
        WEIGHTS,
        "all weights that a trial may start from must be had before the first trial",
        f"{missing} of {total} missing",
        "Run `python -m search.commands.weights SPACE --to DIR` on a machine with a network and copy the content of "
        f"DIR to {folder}, or set TORCH_HOME to the copy; or train without: --set model.weights=none; or leave these "
        "choices out of the space.",
    )
