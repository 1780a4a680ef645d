"""Check the installation, this machine, a cluster and data before a search: ``python -m search.commands.doctor``.

Problems keep a search from running and end the command with status 2; warnings do not.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, EXIT_USER_ERROR, run_command, say
from search.storage.results_option import add_results_option

if TYPE_CHECKING:
    from search.diagnosis.finding import Finding


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.doctor", description=__doc__)
    parser.add_argument(
        "--address", metavar="ADDR", help="also check a Ray cluster and each of its machines: HOST:PORT, or auto"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="also check a data set, all its images")
    add_results_option(parser)
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.diagnosis.finding import findings_table
    from search.views.leaderboard import make_console

    findings = list(_findings(arguments))
    make_console().print(findings_table(findings))
    problems, warnings = (sum(finding.level == level for finding in findings) for level in ("problem", "warning"))
    say(f"problems: {problems}, warnings: {warnings}")
    return EXIT_USER_ERROR if problems else EXIT_OK


def _findings(arguments: argparse.Namespace) -> Iterator["Finding"]:
    """What every part says, one part after the other."""
    from search.diagnosis.finding import Finding
    from search.diagnosis.local import data, installation, machine, results
    from search.storage.remote import working_folder

    yield from installation()
    try:
        yield from machine()
        yield from results(working_folder(arguments.results))
        if arguments.address is not None:
            from search.diagnosis.nodes import cluster

            yield from cluster(arguments.address, working_folder(arguments.results))
        if arguments.data is not None:
            yield from data(arguments.data)
    except ImportError as error:  # an installation that is broken is what this command is for
        yield Finding("installation", "problem", f"every module must be importable, but got '{error}'")


if __name__ == "__main__":
    sys.exit(main())
