"""What a study measured: ``python -m search.report``. A table of reported figures, or a search's leaderboard and
its front of metric and cost.

Only the study's tables are read: it may be running, and neither Ray nor torch is loaded.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.files import atomic_path

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from search.ablation import Ablation
    from search.storage.store import StudyStore, TrialRow
    from search.study.experiment import Experiment


@dataclass(frozen=True)
class Report:
    """A table with the words around it."""

    title: str
    introduction: tuple[str, ...]
    """Lines before the table."""
    table: "Table"
    footnotes: Mapping[str, tuple[str, ...]]
    """Lists after the tables, by heading. Empty ones are not shown."""
    further: Mapping[str, "Table"] = field(default_factory=dict)
    """Tables after the first, by heading. Empty ones are not shown."""

    def show(self, console: "Console") -> None:
        """Print it."""
        from rich.text import Text

        console.print(Text(self.title, style="bold"))
        for line in self.introduction:
            console.print(Text(line))
        console.print()
        console.print(self.table)
        for heading, table in self._further():
            console.print()
            console.print(Text(f"{heading}:"))
            console.print(table)
        for heading, notes in self._lists():
            console.print()
            console.print(Text(f"{heading}:"))
            for note in notes:
                console.print(Text(f"- {note}"))

    def markdown(self) -> str:
        """The same as Markdown."""
        blocks = [f"## {self.title}", "\n".join(f"{line}  " for line in self.introduction).rstrip()]
        blocks.append(_markdown_table(self.table))
        for heading, table in self._further():
            blocks += [f"{heading}:", _markdown_table(table)]
        for heading, notes in self._lists():
            blocks += [f"{heading}:", "\n".join(f"- {note}" for note in notes)]
        return "\n\n".join(blocks) + "\n"

    def _further(self) -> "Iterator[tuple[str, Table]]":
        yield from ((heading, table) for heading, table in self.further.items() if table.row_count)

    def _lists(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from ((heading, notes) for heading, notes in self.footnotes.items() if notes)


@dataclass(frozen=True)
class _Standings:
    """A study's tables, for the leaderboard; unlike a :class:`search.study.study.Study` it writes nothing."""

    space: "Experiment"
    store: "StudyStore"

    @property
    def rows(self) -> "list[TrialRow]":
        return self.store.trials()

    @property
    def leaderboard(self) -> "list[TrialRow]":
        return self.store.best_trials()


def study_report(store: "StudyStore") -> Report:
    """The report of a study, as its tables are now.

    Raises:
        UserError: a study of a space that this version does not know.
    """
    from search.ablation import Ablation
    from search.space import parse_space

    experiment: Mapping[str, Any] = store.study["space"]
    if "rows" in experiment:
        return ablation_report(Ablation.from_json(experiment), store)
    return _search_report(_Standings(parse_space(experiment, f"{store.folder}/study.json"), store))


def ablation_report(table: "Ablation", store: "StudyStore") -> Report:
    """Reported figures beside measured ones, row by row; how runs failed; what a reader must know."""
    from rich.table import Table
    from rich.text import Text

    from search.ablation.results import measure

    measurements = measure(table, store.trials(), store.epochs_by_trial())
    columns = list(dict.fromkeys(column for row in table.rows.values() for column in row.reported))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("row", *(f"reported {column}" for column in columns), *table.measured, "runs"):
        shown.add_column(Text(name), no_wrap=True)
    for name, row in table.rows.items():
        measured = measurements[name]
        ended = measured.num_complete + len(measured.failures)
        running = f", {measured.num_open} under way" if measured.num_open else ""
        shown.add_row(
            Text(name),
            *(Text(_figure(row.reported.get(column))) for column in columns),
            *(Text(measured.describe(metric)) for metric in table.measured),
            Text(f"those of {row.same_as}" if row.same_as else f"{ended} of {table.repeats}{running}"),
        )
    changed = ", ".join(f"{key}={value}" for key, value in table.overridden.items())
    failed = {name: measurements[name].failures for name in table.rows if not table.rows[name].same_as}
    return Report(
        title=f"{store.name}: {table.title}",
        introduction=(
            table.source,
            f"Measured on the validation images of {store.study['data_root']}: mean ± standard deviation (runs) at "
            f"each run's best epoch by {table.metric}.",
            *([f"Not the table as reported: all rows have {changed}."] if changed else []),
        ),
        table=shown,
        footnotes={
            "Failed runs": tuple(
                f"{name}, repeat {repeat}: {reason}" for name, runs in failed.items() for repeat, reason in runs
            ),
            "Notes": (*table.notes, *(f"{name}: {row.note}" for name, row in table.rows.items() if row.note)),
            "Reported settings that could not have had an effect in the original code": tuple(
                f"{name}: {row.without_effect}" for name, row in table.rows.items() if row.without_effect
            ),
        },
    )


def _search_report(standings: _Standings) -> Report:
    from search.views.board import leaderboard_table, pareto_heading, pareto_table, state_counts

    store, space = standings.store, standings.space
    best = standings.leaderboard[:1]
    machines = sorted({row.node for row in standings.rows if row.node})
    return Report(
        title=f"study {store.name}",
        introduction=(
            f"{space.direction} {space.metric}: {len(standings.rows)} trials of up to {space.epochs} epochs "
            f"({state_counts(standings.rows) or 'none yet'})",
            f"Data: {store.study['data_root']}. Begun {store.study['created']}.",
            *([f"Ranked by {space.metric} per {space.objective}."] if space.objective else []),
            *(
                f"Best: trial t{row.number:04d}, {space.metric} {row.metric:.4f} in epoch {row.best_epoch}"
                for row in best
            ),
        ),
        table=leaderboard_table(standings),
        further={pareto_heading(space.metric): pareto_table(standings)},
        footnotes={
            "Notes": tuple(
                [f"Seconds compare between machines of one kind only; trials ran on {', '.join(machines)}."]
                if len(machines) > 1
                else []
            )
        },
    )


def _figure(value: float | str | None) -> str:
    """A reported figure with the four decimals that reports give; counts and words as they are."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _markdown_table(table: "Table") -> str:
    rows = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    rows += [list(cells) for cells in zip(*(map(str, column.cells) for column in table.columns), strict=True)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines + ([f"\n{table.caption}"] if table.caption else []))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.report", description=__doc__)
    parser.add_argument("--study", metavar="NAME", help="default: the study that was written last")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write it as Markdown")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.store import find_study
    from search.views.board import make_console

    store = find_study(arguments.results, arguments.study)
    report = study_report(store)
    report.show(make_console())
    if arguments.markdown is not None:
        with atomic_path(arguments.markdown) as temporary:
            temporary.write_text(report.markdown(), encoding="utf-8")
        say(f"\n{arguments.markdown}: the same as Markdown")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
