"""Show what a trial's process printed: ``python -m search.commands.logs --trial 7``. The study may be running."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.logs", description=__doc__)
    parser.add_argument("--trial", type=int, metavar="N", required=True, help="number of the trial")
    parser.add_argument("--study", metavar="NAME", help="default: the most recent study")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="folder of all studies; default: results"
    )
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="last lines to show; default: %(default)s")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.find import find_study
    from search.storage.trial_logs import last_attempt, last_traceback, log_path, read_lines
    from search.study.failures import headline
    from search.views.failures import REMEDIES

    store = find_study(arguments.results, arguments.study)
    row = next((row for row in store.trials() if row.number == arguments.trial), None)
    if row is None:
        raise UserError(
            f"--trial: must be a trial of study '{store.name}', but got {arguments.trial}; it has "
            f"{len(store.trials())}. `python -m search.report --study '{store.name}'` lists them."
        )
    path = log_path(store.folder, row.number)
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
        say(f"log: {path}, the last {len(shown)} of {len(lines)} lines")
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
