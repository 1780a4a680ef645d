"""Check a data set and print its counts: ``python -m cellseg.data.check ROOT``.

Errors keep the data from being used and end the command with status 2; warnings and notes do not.
"""

import argparse
import sys
from collections.abc import Sequence

from cellseg.cli import EXIT_OK, EXIT_USER_ERROR, run_command, say
from cellseg.data.reading_options import add_reading_options, config_from
from cellseg.names import counted


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cellseg.data.check", description="List the problems of a data set and its counts."
    )
    add_reading_options(parser)
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.data.audit import check

    report = check(config_from(arguments), _show_progress if sys.stderr.isatty() else None)
    for kind, lines in (("error", report.errors), ("warning", report.warnings), ("note", report.notes)):
        for line in lines:
            say(f"{kind}: {line}")
    if report.errors or report.warnings or report.notes:
        say()
    if report.statistics is not None:
        for line in report.statistics.describe():
            say(line)
    say(f"errors: {len(report.errors)}, warnings: {len(report.warnings)}")
    return EXIT_USER_ERROR if report.errors else EXIT_OK


def _show_progress(done: int, total: int) -> None:
    sys.stderr.write(f"\r{done} of {counted(total, 'image')}" if done < total else "\r\033[K")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
