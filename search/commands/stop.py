"""Stop a submitted study as Ctrl-C would: ``python -m search.commands.stop JOB_OR_STUDY --address ADDR``.

Nothing is lost: the command that submitted it continues it.
"""

import argparse
import sys
from collections.abc import Sequence

from cellseg.cli import EXIT_OK, run_command, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.stop", description=__doc__)
    parser.add_argument("job", metavar="JOB_OR_STUDY", help="a job, or the name of a study, as `jobs` lists them")
    parser.add_argument(
        "--address",
        required=True,
        metavar="ADDR",
        help="the cluster: http://HOST:8265 of its dashboard, HOST:PORT of its head, or auto on one of its machines",
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.cluster.jobs import Jobs

    jobs = Jobs(arguments.address)
    job = jobs.find(arguments.job)
    job = jobs.stop(job, on_wait=lambda: say(f"Stopping {job.id} ..."))
    if job.state != "stopped":  # it came to its end in the meantime
        say(f"{job.id} has {job.state}: {job.progress}")
        return EXIT_OK
    say(f"Stopped study {job.study} ({job.id}): {job.progress}")
    say(f"Continue it: {job.command}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
