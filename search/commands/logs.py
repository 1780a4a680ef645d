"""Show what a trial's process printed: ``python -m search.commands.logs --trial 7``. The study may be running.

With a job or a study's name and ``--address``, show what a submitted study printed, and with ``--follow`` what it
prints until it ends. Ctrl-C ends the showing, not the study.
"""

import argparse
import sys
from collections.abc import Sequence

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.names import counted
from search.storage.results_option import add_results_option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.logs", description=__doc__)
    parser.add_argument("--trial", type=int, metavar="N", help="number of the trial")
    parser.add_argument("--study", metavar="NAME", help="default: the most recent study")
    add_results_option(parser)
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="last lines to show; default: %(default)s")
    parser.add_argument(
        "job", nargs="?", metavar="JOB_OR_STUDY", help="a submitted study, by its name or job, as `jobs` lists them"
    )
    parser.add_argument(
        "--address",
        metavar="ADDR",
        help="its cluster: http://HOST:8265 of the dashboard, HOST:PORT of the head, or auto on one of its machines",
    )
    parser.add_argument("--follow", action="store_true", help="show all, and go on until the study ends")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    if arguments.job is not None:
        return _show_job(arguments)
    if arguments.trial is None:
        raise UserError(
            "--trial: a trial or a submitted study must be named, but got neither. Give --trial N, or JOB_OR_STUDY "
            "with --address ADDR."
        )
    if arguments.follow or arguments.address is not None:
        raise UserError(
            "--trial: must come without --follow and --address, but got both. The logs of trials are in the results "
            "folder."
        )
    return _show_trial(arguments)


def _show_job(arguments: argparse.Namespace) -> int:
    if arguments.address is None:
        raise UserError(
            f"--address: the cluster of a submitted study must be given, but got '{arguments.job}' alone. Give "
            "--address ADDR; for a trial of a study in the results folder, give --study NAME --trial N."
        )
    if arguments.trial is not None:
        raise UserError(
            f"--trial: must come without a job, but got '{arguments.job}' too. The logs of trials are in the results "
            "folder: give --study NAME --trial N there."
        )
    from search.cluster.jobs import Jobs

    jobs = Jobs(arguments.address)
    job = jobs.find(arguments.job)
    if arguments.follow:
        for text in jobs.follow(job):
            sys.stdout.write(text)
            sys.stdout.flush()
    else:
        lines = jobs.log(job).splitlines()
        for line in lines[-arguments.lines :] if arguments.lines > 0 else []:
            say(line)
    job = jobs.look(job.id)
    say(f"{job.id} of study {job.study}: {job.state}, {job.progress}")
    if job.state == "failed":
        say(job.message)
    return EXIT_OK


def _show_trial(arguments: argparse.Namespace) -> int:
    from search.storage.fetch import fetch_file
    from search.storage.find import find_study
    from search.storage.remote import reading_folder
    from search.storage.trial_logs import last_attempt, last_traceback, log_path, read_lines
    from search.study.failures import headline
    from search.views.failures import REMEDIES

    store = find_study(reading_folder(arguments.results), arguments.study)
    row = next((row for row in store.trials() if row.number == arguments.trial), None)
    if row is None:
        raise UserError(
            f"--trial: must be a trial of study '{store.name}', but got {arguments.trial}; it has "
            f"{len(store.trials())}. `python -m search.report --study '{store.name}'` lists them."
        )
    path = log_path(store.folder, row.number)
    fetch_file(store.folder, path.relative_to(store.folder).as_posix())
    lines = read_lines(path)
    attempt = last_attempt(lines)
    say(f"trial t{row.number:04d} of study {store.name}: {row.state.lower()} in epoch {row.epochs}")
    if row.reason:
        say(f"reason: {row.ending}{': ' + headline(row.detail) if row.detail else ''}")
        if row.state in {"FAILED", "INFEASIBLE"} and row.ending in REMEDIES:
            say(f"try: {REMEDIES[row.ending]}")
    if attempt is not None:
        say(f"node {attempt.node}, process {attempt.pid}, started {attempt.started}")
    elif row.node:
        say(f"node {row.node}")
    if not lines:
        say(f"log: nothing at {path}; the trial has not begun, or its machine does not see that folder")
    else:
        shown = lines[-max(arguments.lines, 0) :] if arguments.lines > 0 else []
        say(f"log: {path}, the last {len(shown)} of {counted(len(lines), 'line')}")
        for line in shown:
            say(f"  {line}")
        trace = last_traceback(lines)
        if trace and trace[0] not in [line.strip() for line in shown]:
            say("its last traceback:")
            for line in trace:
                say(f"  {line}")
    if row.detail.startswith("Traceback") and not last_traceback(lines):
        say("its traceback:")
        for line in row.detail.splitlines():
            say(f"  {line}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
