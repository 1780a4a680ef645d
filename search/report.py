"""Show the results of a study: ``python -m search.report``. For an ablation, its figures beside the
published ones; for a search, the leaderboard and the Pareto front.

Reads only the study's tables, so the study may be running, and loads neither Ray nor torch.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.files import atomic_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.report", description=__doc__)
    parser.add_argument("--study", metavar="NAME", help="default: the most recent study")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="folder of all studies; default: results"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the report as Markdown")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.find import find_study
    from search.views.leaderboard import make_console
    from search.views.study_report import study_report

    store, console = find_study(arguments.results, arguments.study), make_console()
    study_report(store, console.width).show(console)
    if arguments.markdown is not None:
        with atomic_path(arguments.markdown) as temporary:
            temporary.write_text(study_report(store).markdown(), encoding="utf-8")
        say(f"\n{arguments.markdown}: the report as Markdown")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
