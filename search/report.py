"""Show the results of a study: ``python -m search.report``. For an ablation, its figures beside the
published ones; for a search, the leaderboard and the Pareto front. A page with all figures and pictures goes into the
study's folder as ``report.html``; several ``--study`` are compared.

The study may be running. Ray is not loaded, and torch only for the pictures.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, run_command, say, spell
from cellseg.errors import Problem, UserError
from cellseg.files import atomic_path
from search.storage.results_option import add_results_option, results_words

if TYPE_CHECKING:
    from search.storage.store import StudyStore
    from search.views.paper import Kind


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.report", description=__doc__)
    parser.add_argument(
        "--study",
        action="append",
        metavar="NAME",
        help="default: the most recent study; give it again to compare it with another",
    )
    add_results_option(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the page goes; default: the study's folder")
    parser.add_argument("--no-html", action="store_true", help="print the tables only")
    for kind in ("pdf", "png"):
        parser.add_argument(
            f"--{kind}", type=Path, metavar="DIR", help=f"also draw the main figures for papers, a {kind.upper()} each"
        )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the report as Markdown")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.find import find_study
    from search.storage.remote import reading_folder
    from search.views.leaderboard import make_console
    from search.views.study_report import study_report

    results = reading_folder(arguments.results)
    names = list(dict.fromkeys(arguments.study or [])) or [None]
    kinds: tuple[Kind, ...] = ("pdf", "png")
    drawn = [(kind, folder) for kind in kinds if (folder := getattr(arguments, kind)) is not None]
    if drawn:
        _check_figures(names)
    if len(names) > 1:
        return _compare([find_study(results, name) for name in names], arguments.html, with_page=not arguments.no_html)
    store, console = find_study(results, names[0]), make_console()
    study_report(store, console.width).show(console)
    if arguments.markdown is not None:
        with atomic_path(arguments.markdown) as temporary:
            temporary.write_text(study_report(store).markdown(), encoding="utf-8")
        say(f"\n{arguments.markdown}: the report as Markdown")
    if not arguments.no_html:
        from search.views.html.page import write_report

        option = results_words(arguments.results)
        command = f"python -m search.export --best --study {shlex.quote(store.name)}{option}"
        say(f"\nReport: {write_report(store, arguments.html, next_command=spell(command))}")
    if drawn:
        from search.views.paper import write_figures

        for kind, folder in drawn:
            for path in write_figures(store, folder, kind):
                say(f"Figure: {path}")
    return EXIT_OK


def _check_figures(names: Sequence[str | None]) -> None:
    """Refuse, before anything is read, figures that cannot be drawn."""
    from search.views.paper import require_matplotlib

    if len(names) > 1:
        remedy = "Draw those of each study, or leave the option out: the page has those of the comparison."
        raise UserError(Problem("--pdf, --png", "draw the figures of one study", f"{len(names)} studies", remedy))
    require_matplotlib()


def _compare(stores: "list[StudyStore]", path: Path | None, *, with_page: bool) -> int:
    """Print how studies compare, and write the page."""
    from search.views.html.comparison import compare_studies, write_comparison

    comparison = compare_studies(stores)
    for line in comparison.describe():
        say(line)
    if with_page:
        path = path or stores[0].folder.parent / f"{'-'.join(store.name for store in stores)}.html"
        say(f"\nReport: {write_comparison(comparison, path)}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
