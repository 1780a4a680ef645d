"""The options of the commands that start a study: here (``run``), or on a cluster that it is sent to (``submit``)."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.study.experiment import Experiment

SETTINGS = ("trials", "epochs", "max_slots", "priority")
"""Settings of a file that have an option of their own."""
SUBMITTED_AS = "CELLSEG_SUBMITTED_AS"
"""Environment variable of a search that was submitted: the command that its user typed, and that continues it."""


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is to be searched or trained, and on which data."""
    parser.add_argument(
        "space",
        type=Path,
        metavar="SPACE",
        help="YAML file of a space (docs/spaces.md) or an ablation (docs/reports.md), or the name of a shipped one",
    )
    parser.add_argument("--study", metavar="NAME", help="name of the study; default: the name of the file")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set; default: the file's data")
    parser.add_argument(
        "--trials", type=int, metavar="N", help="number of trials to finish, including those of earlier runs"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs of a trial that is not stopped early")
    parser.add_argument(
        "--max-slots", type=int, metavar="N", help="the most trials side by side; default: as many as the cluster holds"
    )
    parser.add_argument(
        "--priority",
        type=float,
        metavar="X",
        help="part of a cluster that several studies share, in proportion to theirs; default: 1",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a config field or change a setting"
    )
    parser.add_argument("--rows", metavar="A,B", help="for an ablation: train only these rows")


def study_name(arguments: argparse.Namespace) -> str:
    """Return the name that the options give the study; it may be one that no study can have."""
    return arguments.space.stem if arguments.study is None else arguments.study


def experiment_of(arguments: argparse.Namespace) -> "Experiment":
    """Load the experiment that the file describes, with the command line's settings over it.

    Raises:
        UserError: every problem of the file and the options.
    """
    from search.study.load import load_experiment

    overrides = list(arguments.set)
    overrides += [f"{key}={value}" for key in SETTINGS if (value := getattr(arguments, key)) is not None]
    rows = None if arguments.rows is None else [name.strip() for name in arguments.rows.split(",")]
    return load_experiment(arguments.space, overrides, rows)


def study_words(arguments: argparse.Namespace) -> list[str]:
    """Write the options as words of a command line again, without the file and the study's name."""
    given = {f"--{key.replace('_', '-')}": getattr(arguments, key) for key in ("data", *SETTINGS, "rows")}
    # In one word with its value, which may begin with a dash.
    words = [f"{option}={value}" for option, value in given.items() if value is not None]
    return words + [f"--set={setting}" for setting in arguments.set]
