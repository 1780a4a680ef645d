"""Search a space: ``python -m search.run spaces/quickstart.yaml``. The same command continues the study."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_INTERRUPTED, EXIT_OK, run_command, say

if TYPE_CHECKING:
    from search.setup import StudyData
    from search.space import Space

RESULTS = Path("results")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.run", description=__doc__)
    parser.add_argument("space", type=Path, help="the space, a YAML file (docs/spaces.md)")
    parser.add_argument("--study", metavar="NAME", help="name of the study; default: the space file's")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set; default: the space's data")
    parser.add_argument("--trials", type=int, metavar="N", help="trials to finish, those of earlier runs included")
    parser.add_argument("--epochs", type=int, metavar="N", help="full length of a trial")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a config field or change a setting"
    )
    parser.add_argument("--address", metavar="ADDR", help="a Ray cluster, or auto; default: this machine alone")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: results")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the space and print the plan; no data, no training"
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.setup import prepare_data, study_lock
    from search.space import load_space
    from search.store import check_name

    overrides = list(arguments.set)
    overrides += [f"{key}={value}" for key in ("trials", "epochs") if (value := getattr(arguments, key)) is not None]
    space = load_space(arguments.space, overrides)
    name = arguments.space.stem if arguments.study is None else arguments.study
    check_name(name)
    if arguments.dry_run:
        return _dry_run(space, name)
    data = prepare_data(space, arguments.data, arguments.results)
    with study_lock(arguments.results, name):
        return _search(space, name, data, arguments)


def _dry_run(space: "Space", name: str) -> int:
    for line in (f"study {name}", *space.describe()):
        say(line)
    return EXIT_OK


def _search(space: "Space", name: str, data: "StudyData", arguments: argparse.Namespace) -> int:
    import optuna
    from rich.console import Console

    from search.board import Board, leaderboard_table
    from search.driver import ray_cluster, run_study, trial_resources
    from search.gallery import write_overlays
    from search.setup import open_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the board reports trials
    study = open_study(space, name, arguments.results, data)
    console = Console()
    if not console.is_terminal:  # a log has no width; rich would cut the table to 80 columns
        console = Console(width=160)
    if study.is_over:
        say(f"study '{name}' has its {space.trials} trials; more with --trials N")
    else:
        wanted = space.resources.model_dump() if space.resources else None
        with ray_cluster(arguments.address) as dashboard:
            say(f"Ray dashboard: http://{dashboard} (it may ask for a token: `ray get-auth-token` prints it)")
            for line in space.describe():
                say(line)
            resources = trial_resources(wanted)
            board = Board(study, console)
            with board.shown():
                done = run_study(study, data.packed.table, resources, on_event=board.update)
        console.print(leaderboard_table(study))
        if not done:
            say(f"Stopped. {_again(arguments)} goes on where it was.")
            return EXIT_INTERRUPTED
    best = study.leaderboard[0] if study.leaderboard else None
    if best is None or best.metric is None:
        say("No trial has a value.")
        return EXIT_OK
    overlays = write_overlays(study, data.packed)
    say(f"Best: trial t{best.number:04d}, validation {space.metric} {best.metric:.4f} in epoch {best.best_epoch}")
    say(f"Results: {study.store.folder}  overlays: {overlays}")
    say(f"Next: python -m search.export --best --study {shlex.quote(name)}" + _results_option(arguments))
    return EXIT_OK


def _again(arguments: argparse.Namespace) -> str:
    return "python -m search.run " + shlex.join(sys.argv[1:])


def _results_option(arguments: argparse.Namespace) -> str:
    return "" if arguments.results == RESULTS else f" --results {shlex.quote(str(arguments.results))}"


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
