"""Search a space, or train the rows of an ablation: ``python -m search.run spaces/quickstart.yaml``.

The same command continues the study.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_INTERRUPTED, EXIT_OK, run_command, say, spell
from cellseg.errors import Problem, UserError, raise_all
from cellseg.names import counted
from search.storage.results_option import add_results_option, results_words
from search.study.options import SUBMITTED_AS, add_study_options, experiment_of, study_name

if TYPE_CHECKING:
    from rich.console import Console

    from search.prepare import StudyData
    from search.study.experiment import Experiment
    from search.study.study import Study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.run", description=__doc__)
    add_study_options(parser)
    parser.add_argument(
        "--address", metavar="ADDR", help="address of a Ray cluster, or auto; default: only this machine"
    )
    add_results_option(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check the file and print the plan; no data, no training"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="with --dry-run: also train an epoch of up to three configs here, and say what the study costs in hours",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="show no board and no line for each epoch, only notes and the result"
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.prepare import cleared_if_refused, discarded_unless_started, prepare_data
    from search.space.shipped import find_space
    from search.storage.find import check_name
    from search.storage.lock import study_lock
    from search.storage.place import check_place
    from search.storage.remote import working_folder
    from search.storage.store import StudyStore, read_study
    from search.study.choose import require_packages
    from search.study.earlier import with_starts
    from search.views.trackers.tracking import missing_trackers

    arguments.space = find_space(arguments.space)
    experiment = experiment_of(arguments)
    require_packages(experiment)
    name = study_name(arguments)
    check_name(name)
    raise_all(missing_trackers(experiment.track))
    if arguments.measure and not arguments.dry_run:
        remedy = "Add --dry-run, or leave it out: a search measures by itself."
        raise UserError(Problem("--measure", "belongs to --dry-run", "a search", remedy))
    arguments.shown_results, arguments.results = arguments.results, working_folder(arguments.results)
    is_new = not StudyStore.exists(arguments.results / name)
    if is_new or arguments.dry_run:  # else the study that is continued has them
        description = arguments.results / name / "study.json"
        former = read_study(description).get("space") if description.exists() else None
        experiment, taken = with_starts(experiment, name, arguments.results, former)
        for line in taken:
            say(line)
    if arguments.dry_run:
        return _dry_run(experiment, name, arguments)
    with cleared_if_refused(arguments.results):
        check_place(arguments.results)
        if is_new:  # before anything is written; one that is there may be over, and need none
            _provide_weights(experiment, arguments)
        data = prepare_data(experiment, arguments.data, arguments.results)
        with study_lock(arguments.results, name), discarded_unless_started(arguments.results / name):
            return _carry_out(experiment, name, data, arguments, is_new=is_new)


def _dry_run(experiment: "Experiment", name: str, arguments: argparse.Namespace) -> int:
    from search.plan import describe_plan
    from search.study.possible import starts_from_weights, untrained_stages

    say(f"study {name}")
    for line in describe_plan(experiment):
        say(line)
    raise_all(untrained_stages(experiment))
    if starts_from_weights(experiment):
        from search.study.weights import describe_weights

        for line in describe_weights(experiment, arguments.results):
            say(line)
    if arguments.measure:
        from search.diagnosis.epoch_cost import describe_measured_cost

        for line in describe_measured_cost(experiment, arguments.data):
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
    from search.views.trackers.tracking import Tracking

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the board reports trials
    study = open_study(experiment, name, arguments.results, data, on_note=lambda text: say(f"note: {text}"))
    console = make_console()
    if study.is_over:
        say("\n".join(_why_over(study)))
        # One that was added to `track` since, or whose copy was deleted, gets what the tables know.
        Tracking(study.store, experiment.track, lambda text: say(f"note: {text}")).close()
    else:
        if not is_new:
            _provide_weights(experiment, arguments)
        done = _train(study, data, arguments, console)
        study.store.sweep_checkpoints(experiment.keep)
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
    from search.cluster.node_watch import checked_nodes
    from search.cluster.tracking import tracked
    from search.storage.progress import open_progress
    from search.views.board import Board

    if study.storage_error is not None:  # before Ray starts: it takes a while, and needs space too
        raise study.storage_error
    wanted = study.experiment.resources
    context = copy_context()  # another thread says it: it knows the command's name from here
    with ray_cluster(arguments.address) as dashboard:
        if dashboard:  # a cluster may have none
            say(_describe_dashboard(dashboard, arguments.address))
        for line in study.experiment.describe():
            say(line)
        board = Board(study, console, quiet=arguments.quiet)
        resources = wanted.model_dump() if wanted else None
        is_own = arguments.address is None
        with (
            checked_nodes(study.store, resources, say, is_own=is_own) as checks,
            open_progress(study.store.folder),
            tracked(study, say, board.note) as tracking,
            board.shown(),
        ):
            return run_study(
                study,
                data.packed.table,
                resources,
                shared=not is_own,
                checks=checks,
                callbacks=[tracking],
                on_event=board.update,
                on_note=board.note,
                on_wait=board.wait,
                on_slots=board.slots,
                on_leave=lambda: context.run(_say_stopped, arguments),
            )


def _describe_dashboard(dashboard: str, address: str | None) -> str:
    """Say where Ray's dashboard is, how to get there from another machine, and what it may ask for.

    Args:
        dashboard: ``HOST:PORT`` as its cluster knows it.
        address: of the cluster, None for one of this machine's own.
    """
    from search.views.addresses import describe_address

    host, _, port = dashboard.rpartition(":")
    head = "" if address in (None, "auto") else address.rpartition("://")[2].partition(":")[0]
    where = describe_address(host, int(port), head)
    return f"Ray dashboard: {where}; it may ask for a token, which `ray get-auth-token` prints"


def _say_stopped(arguments: argparse.Namespace) -> None:
    submitted = os.environ.get(SUBMITTED_AS)  # in a shell of another machine
    again = submitted or "python -m search.run " + shlex.join(arguments.argv)
    say(f"Stopped. {again} continues where it was.", here=submitted is None)


def _why_over(study: "Study") -> list[str]:
    """Why a study has no more to do, and with which setting it would have; a line for each reason."""
    lines, trials = [], study.experiment.trials
    if study.num_finished >= trials:
        lines.append(
            f"study '{study.name}' has finished its {counted(trials, 'trial')}; "
            f"run more with {study.experiment.more_trials}"
        )
    if limit := study.limits.reached:
        cut = sum(row.state == "INTERRUPTED" for row in study.rows)
        unfinished = f" ({counted(cut, 'trial')} unfinished)" if cut else ""
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
    say(f"Results: {study.store.place}  overlays: {overlays}")
    command = _next_command(study) + _results_option(arguments)
    _write_html(study, command)
    say(f"Next: {command}")


def _next_command(study: "Study") -> str:
    """The command that the best model is for: the results of the listed test images, where there are any; else a
    prediction of whatever images the user has."""
    from cellseg.data.testset import has_test_list, read_test_list

    name = shlex.quote(study.name)
    root = Path(study.store.study["data_root"])
    try:
        has_images = has_test_list(root) and any(image.path is not None for image in read_test_list(root))
    except UserError:  # a list that export would refuse
        has_images = False
    if has_images:
        return f"python -m search.export --best --study {name}"
    return f"python -m search.commands.predict {name} IMAGES --to labels,overlay --out predictions"


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
    return results_words(arguments.shown_results)


if __name__ == "__main__":
    sys.exit(main())
