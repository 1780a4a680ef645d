"""Search a space, or train the rows of a table: ``python -m search.run spaces/quickstart.yaml``.

The same command continues the study.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_INTERRUPTED, EXIT_OK, run_command, say
from cellseg.errors import UserError

if TYPE_CHECKING:
    from search.ablation import Ablation
    from search.prepare import StudyData
    from search.space import Space
    from search.study.experiment import Experiment
    from search.study.study import Study

RESULTS = Path("results")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.run", description=__doc__)
    parser.add_argument("space", type=Path, help="a YAML file, or the name of a space that comes with the package")
    parser.add_argument("--study", metavar="NAME", help="name of the study; default: the space file's")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data set; default: the space's data")
    parser.add_argument("--trials", type=int, metavar="N", help="trials to finish, those of earlier runs included")
    parser.add_argument("--epochs", type=int, metavar="N", help="full length of a trial")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a config field or change a setting"
    )
    parser.add_argument("--rows", metavar="A,B", help="of a table, train only these rows")
    parser.add_argument("--address", metavar="ADDR", help="a Ray cluster, or auto; default: this machine alone")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="default: results")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the space and print the plan; no data, no training"
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.ablation import Ablation
    from search.prepare import prepare_data, study_lock
    from search.space.shipped import find_space
    from search.storage.store import check_name

    arguments.space = find_space(arguments.space)
    space = _load(arguments)
    name = arguments.space.stem if arguments.study is None else arguments.study
    check_name(name)
    if arguments.dry_run:
        return _dry_run_table(space, name) if isinstance(space, Ablation) else _dry_run(space, name)
    data = prepare_data(space, arguments.data, arguments.results)
    with study_lock(arguments.results, name):
        return _search(space, name, data, arguments)


def _load(arguments: argparse.Namespace) -> "Space | Ablation":
    """What the file describes, with the command line's settings over it."""
    from search.ablation import is_table, load_ablation
    from search.space import load_space

    overrides = list(arguments.set)
    overrides += [f"{key}={value}" for key in ("trials", "epochs") if (value := getattr(arguments, key)) is not None]
    if is_table(arguments.space):
        rows = [] if arguments.rows is None else [name.strip() for name in arguments.rows.split(",")]
        return load_ablation(arguments.space, overrides, rows)
    if arguments.rows is not None:
        raise UserError(f"--rows: is for tables, but got {arguments.space}, which has no rows. Leave it out.")
    return load_space(arguments.space, overrides)


def _dry_run(space: "Space", name: str) -> int:
    from search.plan import build_extremes, describe_cost, describe_models, never_drawn, sample_params

    for line in (f"study {name}", *space.describe(), *describe_cost(space)):
        say(line)
    samples = sample_params(space)
    say(f"configs: {len(samples)} sampled, all valid")
    if missing := never_drawn(space, samples):
        say(f"never drawn: {', '.join(missing)}")
    say(describe_models(build_extremes(space, samples)))
    return EXIT_OK


def _dry_run_table(table: "Ablation", name: str) -> int:
    from search.plan import build_models, describe_models

    for line in (f"study {name}", *table.describe()):
        say(line)
    say(describe_models(build_models(table.row_config(row).model for row in table.trained_rows)))
    return EXIT_OK


def _search(space: "Experiment", name: str, data: "StudyData", arguments: argparse.Namespace) -> int:
    import optuna

    from search.ablation import Ablation
    from search.cluster.driver import ray_cluster, run_study, trial_resources
    from search.prepare import open_study
    from search.report import study_report
    from search.views.board import Board, leaderboard_table, make_console, show_front

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the board reports trials
    study = open_study(space, name, arguments.results, data)
    console = make_console()
    is_table = isinstance(space, Ablation)
    more_trials = "--set repeats=N" if is_table else "--trials N"
    if study.is_over:
        say("\n".join(_why_over(study, more_trials)))
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
        if not is_table:
            console.print(leaderboard_table(study))
        if not done:
            say(f"Stopped. {_again(arguments)} goes on where it was.")
            return EXIT_INTERRUPTED
        if study.limits.reached:
            say("\n".join(_why_over(study, more_trials)))
        if not is_table:
            show_front(study, console)
    if is_table:
        study_report(study.store).show(console)
        say(f"\nThis table again: python -m search.report --study {shlex.quote(name)}" + _results_option(arguments))
        return EXIT_OK
    return _show_best(study, data, arguments)


def _why_over(study: "Study", more_trials: str) -> list[str]:
    """Why a study has no more to do, and with which setting it would have; a line for each reason."""
    lines = []
    if study.num_finished >= study.space.trials:
        lines.append(f"study '{study.name}' has its {study.space.trials} trials; more with {more_trials}")
    if limit := study.limits.reached:
        cut = sum(row.state == "INTERRUPTED" for row in study.rows)
        unfinished = f" ({cut} trials are unfinished)" if cut else ""
        lines.append(f"study '{study.name}' ended by {limit}; it goes on with --set {limit.setting}=N{unfinished}")
    return lines


def _show_best(study: "Study", data: "StudyData", arguments: argparse.Namespace) -> int:
    """Say which trial is the best, draw it, and name the next command."""
    from search.views.gallery import write_overlays

    best = study.leaderboard[0] if study.leaderboard else None
    if best is None or best.metric is None:
        say("No trial has a value.")
        return EXIT_OK
    overlays = write_overlays(study, data.packed)
    say(f"Best: trial t{best.number:04d}, validation {study.space.metric} {best.metric:.4f} in epoch {best.best_epoch}")
    say(f"Results: {study.store.folder}  overlays: {overlays}")
    say(f"Next: python -m search.export --best --study {shlex.quote(study.name)}" + _results_option(arguments))
    return EXIT_OK


def _again(arguments: argparse.Namespace) -> str:
    return "python -m search.run " + shlex.join(arguments.argv)


def _results_option(arguments: argparse.Namespace) -> str:
    return "" if arguments.results == RESULTS else f" --results {shlex.quote(str(arguments.results))}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
