"""Search a space, or train the rows of an ablation: ``python -m search.run spaces/quickstart.yaml``.

The same command continues the study.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_INTERRUPTED, EXIT_OK, run_command, say, spell
from cellseg.errors import UserError, raise_all

if TYPE_CHECKING:
    from rich.console import Console

    from search.prepare import StudyData
    from search.study.experiment import Experiment
    from search.study.study import Study

RESULTS = Path("results")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.run", description=__doc__)
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
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fix a config field or change a setting"
    )
    parser.add_argument("--rows", metavar="A,B", help="for an ablation: train only these rows")
    parser.add_argument(
        "--address", metavar="ADDR", help="address of a Ray cluster, or auto; default: only this machine"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="folder of all studies; default: results"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check the file and print the plan; no data, no training"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="show no board and no line for each epoch, only notes and the result"
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.prepare import discarded_unless_started, prepare_data
    from search.space.shipped import find_space
    from search.storage.find import check_name
    from search.storage.lock import study_lock
    from search.storage.place import check_place
    from search.storage.store import StudyStore

    arguments.space = find_space(arguments.space)
    experiment = _load(arguments)
    name = arguments.space.stem if arguments.study is None else arguments.study
    check_name(name)
    if arguments.dry_run:
        return _dry_run(experiment, name, arguments.results)
    check_place(arguments.results)
    is_new = not StudyStore.exists(arguments.results / name)
    if is_new:  # before anything is written; one that is there may be over, and need none
        _provide_weights(experiment, arguments)
    data = prepare_data(experiment, arguments.data, arguments.results)
    with study_lock(arguments.results, name), discarded_unless_started(arguments.results / name):
        return _carry_out(experiment, name, data, arguments, is_new=is_new)


def _load(arguments: argparse.Namespace) -> "Experiment":
    """The experiment that the file describes, with the command line's settings over it."""
    from search.study.load import load_experiment

    overrides = list(arguments.set)
    overrides += [
        f"{key}={value}" for key in ("trials", "epochs", "max_slots") if (value := getattr(arguments, key)) is not None
    ]
    rows = None if arguments.rows is None else [name.strip() for name in arguments.rows.split(",")]
    return load_experiment(arguments.space, overrides, rows)


def _dry_run(experiment: "Experiment", name: str, results: Path) -> int:
    from search.plan import describe_plan
    from search.study.possible import starts_from_weights, untrained_stages

    say(f"study {name}")
    for line in describe_plan(experiment):
        say(line)
    raise_all(untrained_stages(experiment))
    if starts_from_weights(experiment):
        from search.study.weights import describe_weights

        for line in describe_weights(experiment, results):
            say(line)
    return EXIT_OK


def _provide_weights(experiment: "Experiment", arguments: argparse.Namespace) -> None:
    """Fetch the weights that trials start from, and refuse what none can start from."""
    from search.study.possible import starts_from_weights, untrained_stages

    raise_all(untrained_stages(experiment))
    if starts_from_weights(experiment):
        from search.study.weights import provide_weights

        provide_weights(experiment, arguments.results, travel=arguments.address is not None, say=say)


def _carry_out(
    experiment: "Experiment", name: str, data: "StudyData", arguments: argparse.Namespace, *, is_new: bool
) -> int:
    import optuna

    from search.prepare import open_study
    from search.views.leaderboard import leaderboard_table, make_console, show_front

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the board reports trials
    study = open_study(experiment, name, arguments.results, data, on_note=lambda text: say(f"note: {text}"))
    console = make_console()
    if study.is_over:
        say("\n".join(_why_over(study)))
    else:
        if not is_new:
            _provide_weights(experiment, arguments)
        done = _train(study, data, arguments, console)
        if experiment.is_search:
            console.print(leaderboard_table(study, width=console.width))
        if not done:
            _say_stopped(arguments)
            return EXIT_INTERRUPTED
        if study.limits.reached:
            say("\n".join(_why_over(study)))
        if experiment.is_search:
            show_front(study, console)
    if experiment.is_search:
        _show_best(study, data, arguments)
    else:
        _show_report(study, console, arguments)
    return EXIT_OK


def _train(study: "Study", data: "StudyData", arguments: argparse.Namespace, console: "Console") -> bool:
    """Run trials on Ray until the study is over; False if it was interrupted before."""
    from search.cluster.connect import ray_cluster
    from search.cluster.driver import run_study
    from search.cluster.node_watch import watched_nodes
    from search.storage.progress import open_progress
    from search.views.board import Board

    if study.storage_error is not None:  # before Ray starts: it takes a while, and needs space too
        raise study.storage_error
    wanted = study.experiment.resources
    context = copy_context()  # another thread says it: it knows the command's name from here
    with ray_cluster(arguments.address) as dashboard:
        if dashboard:  # a cluster may have none
            say(f"Ray dashboard: http://{dashboard} (it may ask for a token: `ray get-auth-token` prints it)")
        for line in study.experiment.describe():
            say(line)
        board = Board(study, console, quiet=arguments.quiet)
        resources = wanted.model_dump() if wanted else None
        with (
            watched_nodes(study, resources, say, is_own=arguments.address is None) as callbacks,
            open_progress(study.store.folder),
            board.shown(),
        ):
            return run_study(
                study,
                data.packed.table,
                resources,
                shared=arguments.address is not None,
                callbacks=callbacks,
                on_event=board.update,
                on_note=board.note,
                on_wait=board.wait,
                on_slots=board.slots,
                on_leave=lambda: context.run(_say_stopped, arguments),
            )


def _say_stopped(arguments: argparse.Namespace) -> None:
    again = "python -m search.run " + shlex.join(arguments.argv)
    say(f"Stopped. {again} continues where it was.")


def _why_over(study: "Study") -> list[str]:
    """Why a study has no more to do, and with which setting it would have; a line for each reason."""
    lines, trials = [], study.experiment.trials
    if study.num_finished >= trials:
        lines.append(
            f"study '{study.name}' has finished its {trials} trials; run more with {study.experiment.more_trials}"
        )
    if limit := study.limits.reached:
        cut = sum(row.state == "INTERRUPTED" for row in study.rows)
        unfinished = f" ({cut} trials are unfinished)" if cut else ""
        lines.append(f"study '{study.name}' ended by {limit}; continue with --set {limit.setting}=N{unfinished}")
    return lines


def _show_best(study: "Study", data: "StudyData", arguments: argparse.Namespace) -> None:
    """Say which trial is the best, draw it, and name the next command."""
    from search.views.gallery import write_overlays

    best = study.leaderboard[0] if study.leaderboard else None
    if best is None or best.metric is None:
        say("No trial has reported a value yet.")
        return
    overlays = write_overlays(study, data.packed)
    metric = study.experiment.metric
    say(f"Best: trial t{best.number:04d}, validation {metric} {best.metric:.4f} in epoch {best.best_epoch}")
    say(f"Results: {study.store.folder}  overlays: {overlays}")
    command = f"python -m search.export --best --study {shlex.quote(study.name)}" + _results_option(arguments)
    _write_html(study, command)
    say(f"Next: {command}")


def _show_report(study: "Study", console: "Console", arguments: argparse.Namespace) -> None:
    """Show the figures of an ablation, and name the command that shows them again."""
    from search.views.study_report import study_report

    study_report(study.store).show(console)
    again = f"python -m search.report --study {shlex.quote(study.name)}" + _results_option(arguments)
    say()
    _write_html(study)
    say(f"This report again: {again}")


def _write_html(study: "Study", command: str = "") -> None:
    """Write the report with its figures, and say where; a disk that is full does not spoil a search that is over."""
    from search.views.html.page import write_report

    try:
        say(f"Report: {write_report(study.store, next_command=spell(command))}")
    except UserError as error:
        say(f"note: no report: {error}")


def _results_option(arguments: argparse.Namespace) -> str:
    return "" if arguments.results == RESULTS else f" --results {shlex.quote(str(arguments.results))}"


if __name__ == "__main__":
    sys.exit(main())
