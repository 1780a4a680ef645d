"""Show how a search is doing: ``python -m search.commands.status --watch``. On any machine that sees the results.

Reads only the study's tables and the progress of its trials; loads neither Ray nor torch.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from cellseg.cli import EXIT_OK, run_command, say
from search.storage.results_option import add_results_option

WATCH_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.status", description=__doc__)
    parser.add_argument("--study", metavar="NAME", help="default: the most recent study")
    add_results_option(parser)
    parser.add_argument("--watch", action="store_true", help="keep showing it until Ctrl-C, or until no trial runs")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.find import find_study
    from search.storage.remote import reading_folder
    from search.views.board import BoardView
    from search.views.leaderboard import make_console
    from search.views.standings import StudyTables
    from search.views.summary import last_sign

    def look() -> tuple[StudyTables, BoardView]:
        tables = StudyTables.of(find_study(results, name))
        return tables, BoardView(tables, lambda: tables.store.wall_seconds)

    name, results = arguments.study, reading_folder(arguments.results)
    console = make_console()
    tables, view = look()
    name = tables.name  # the same one while it is watched, also if another begins
    if not arguments.watch or not console.is_terminal:
        console.print(view)
        say(f"study {tables.name} in {tables.store.place}{last_sign(tables)}")
        if not arguments.watch:
            return EXIT_OK
    from rich.live import Live

    with Live(view, console=console, auto_refresh=False, transient=False, vertical_overflow="crop") as live:
        while any(row.state == "RUNNING" for row in tables.rows):
            began = time.monotonic()
            tables, view = look()
            live.update(view, refresh=console.is_terminal)
            # Tables of many trials take a while to read: at most a fifth of the time goes into that.
            time.sleep(max(WATCH_SECONDS, 4 * (time.monotonic() - began)))
    if not console.is_terminal:
        console.print(view)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
