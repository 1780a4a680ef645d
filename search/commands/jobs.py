"""List the studies that were submitted to a Ray cluster: ``python -m search.commands.jobs --address ADDR``."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, run_command, say

if TYPE_CHECKING:
    from rich.table import Table

    from search.cluster.job_record import StudyJob

STYLES = {"running": "cyan", "succeeded": "green", "failed": "red", "stopped": "yellow", "pending": "dim"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.jobs", description=__doc__)
    parser.add_argument(
        "--address",
        required=True,
        metavar="ADDR",
        help="the cluster: http://HOST:8265 of its dashboard, HOST:PORT of its head, or auto on one of its machines",
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.cluster.jobs import Jobs
    from search.views.leaderboard import make_console

    jobs = Jobs(arguments.address).all()
    if not jobs:
        say("No study was submitted to this cluster.")
        return EXIT_OK
    make_console().print(jobs_table(jobs, time.time()))
    return EXIT_OK


def jobs_table(jobs: Sequence["StudyJob"], now: float) -> "Table":
    """Make a table of submitted studies, a line for each.

    Args:
        now: seconds since 1970.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "study", "state", "progress", "by", "submitted", "for"):
        table.add_column(name, no_wrap=name != "progress")
    for job in jobs:
        table.add_row(
            Text(job.id),
            Text(job.study),
            Text(job.state, style=STYLES.get(job.state, "")),
            Text(_progress(job)),
            Text(job.user),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)),
            _duration((now if job.ended is None else job.ended) - job.started),
        )
    return table


def _progress(job: "StudyJob") -> str:
    """What a study last told; of a job that failed the last line of its log, which says why."""
    lines = [line.strip() for line in job.message.splitlines() if line.strip()]
    return lines[-1] if job.state == "failed" and lines else job.progress


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


if __name__ == "__main__":
    sys.exit(main())
