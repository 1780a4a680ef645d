"""The leaderboard in the terminal: a live table on a screen, plain lines in a job's log."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cellseg.cli import spell
from cellseg.config import gain
from search.cost import COSTS, Objective, pareto_trials, trial_cost
from search.space.settings import COST_UNITS, Cost
from search.storage.tables import TrialRow
from search.storage.trial_logs import log_path
from search.study.experiment import Experiment

if TYPE_CHECKING:
    from search.study.study import Study

MAX_ROWS = 15
MAX_FAILURES = 3
"""Failed trials below the table, the latest ones."""
LOG_WIDTH = 160
"""Columns of a table in a log, which has no width of its own; rich would cut it to 80."""
STYLES = {
    "RUNNING": "cyan",
    "COMPLETE": "green",
    "PRUNED": "yellow",
    "INFEASIBLE": "magenta",
    "FAILED": "red",
    "INTERRUPTED": "dim",
}


class Standings(Protocol):
    """A study for a leaderboard: a :class:`search.study.study.Study`, or its tables read again."""

    @property
    def experiment(self) -> Experiment: ...

    @property
    def rows(self) -> list[TrialRow]: ...

    @property
    def leaderboard(self) -> list[TrialRow]: ...


def make_console() -> Console:
    """Make the terminal's console, or one for standard output as wide as a log may be."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


class Board:
    """Shows a study while it runs. ``update`` is called after every event."""

    def __init__(self, study: "Study", console: Console):
        self._study = study
        self._console = console
        self._started = time.monotonic()
        self._waits_for = ""
        self._revision = 0
        self._told: dict[int, tuple[str, int]] = {row.number: (row.state, row.epochs) for row in study.rows}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table on the screen for the time of the block; without a screen, nothing."""
        if not self._console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self.render, console=self._console, refresh_per_second=2, transient=True, screen=False
        ):
            yield

    def update(self) -> None:
        """Print, without a screen, a line for each trial that moved since the last call."""
        if self._console.is_terminal:
            return
        revision, self._revision = self._revision, self._study.store.revision
        for row in self._study.store.changed_since(revision):
            if self._told.get(row.number) != (row.state, row.epochs):
                self._told[row.number] = (row.state, row.epochs)
                self._console.print(self._line(row), soft_wrap=True, highlight=False, markup=False)

    def note(self, text: str) -> None:
        """Print what a person should know, above the table."""
        self._console.print(spell(text), soft_wrap=True, highlight=False, markup=False)

    def wait(self, text: str) -> None:
        """Show what trials wait for until told otherwise; empty: they do no more."""
        self._waits_for = text
        if text and not self._console.is_terminal:
            self.note(text)

    def render(self) -> Group:
        """Make the header and the table of running and best trials."""
        rows = self._study.rows
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        header = Text(
            f"{self._study.name}: {self._study.num_finished} of {self._study.experiment.trials} trials "
            f"({state_counts(rows) or 'starting'}), {minutes}:{seconds:02d}",
            style="bold",
        )
        if limits := self._study.limits.describe():
            header.append(f"  {limits}")
        if self._waits_for:
            header.append(f"\n{self._waits_for}", style="yellow")
        failures = failed_trials(rows, self._study.store.folder, MAX_FAILURES)
        lines = (Text(f"failed: {line}", style=STYLES["FAILED"]) for line in failures)
        return Group(header, leaderboard_table(self._study), *lines)

    def _line(self, row: TrialRow) -> str:
        value = "" if row.metric is None else f"  best {self._study.experiment.metric} {row.metric:.4f}"
        reason = f"  ({row.reason.strip().splitlines()[-1]})" if row.reason else ""
        if row.state == "FAILED" and (log := log_path(self._study.store.folder, row.number)).exists():
            reason += f"  log {log}"
        epochs = f"{row.epochs}/{self._study.experiment.epochs}"
        return f"t{row.number:04d}  {row.state.lower():<11}  epoch {epochs}{value}{reason}"


def failed_trials(rows: Iterable[TrialRow], folder: Path, most: int) -> list[str]:
    """Say of the latest failed trials why they failed, and where their logs are if they have some.

    Args:
        folder: the study's.
        most: number of trials at most.
    """
    lines = []
    for row in [row for row in rows if row.state == "FAILED"][-most:]:
        cause = row.detail.splitlines()[-1].strip() if row.detail else ""
        log = log_path(folder, row.number)
        where = f"; log {log}" if log.exists() else ""
        lines.append(f"t{row.number:04d} {row.ending}{': ' + cause if cause else ''}{where}")
    return lines


def state_counts(rows: Iterable[TrialRow]) -> str:
    """Count the trials in each state, in words; empty for none."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state.lower()}" for state in STYLES if counts[state])


def leaderboard_table(study: Standings, max_rows: int = MAX_ROWS) -> Table:
    """Make a table of the running trials and the best ended ones, best first, with the values that tell them apart."""
    objective = Objective.of(study.experiment.metric, study.experiment.objective)
    ranked = study.leaderboard
    num_ranked, with_rank = len(ranked), {row.number for row in ranked}
    ranked += [row for row in study.rows if row.number not in with_rank and row.state != "FAILED"]
    # Running trials are always shown: they are what a waiting person looks for.
    running = [row for row in ranked if row.state == "RUNNING"]
    best = [row for row in ranked if row.state != "RUNNING"][: max(0, max_rows - len(running))]
    shown = {row.number for row in (*running, *best)}
    keys = list(study.experiment.domains)
    table = Table(box=None, pad_edge=False, header_style="bold")
    weighed = ["objective", COST_UNITS[objective.per]] if objective.per else []
    for name in (
        "",
        "trial",
        "state",
        "epochs",
        study.experiment.metric,
        *weighed,
        *(key.split(".")[-1] for key in keys),
    ):
        table.add_column(name, no_wrap=True)
    for rank, row in enumerate(ranked, start=1):
        if row.number not in shown:
            continue
        params = json.loads(row.params)
        table.add_row(
            str(rank) if rank <= num_ranked else "",
            f"t{row.number:04d}",
            Text(row.state.lower(), style=STYLES[row.state]),
            f"{row.epochs}/{study.experiment.epochs}",
            "" if row.metric is None else f"{row.metric:.4f} @{row.best_epoch}",
            *([_number(objective.trial_value(row)), _cost(row, objective.per)] if objective.per else []),
            *(Text(format_value(params[key])) if key in params else "-" for key in keys),
        )
    if len(ranked) > len(shown):
        table.caption = f"and {len(ranked) - len(shown)} more"
    return table


def pareto_heading(metric: str) -> str:
    """Say what :func:`pareto_table` shows."""
    return f"Pareto front of fully trained trials: no other is as good in both {metric} and a cost (* marks the cost)"


def pareto_table(study: Standings, costs: Sequence[Cost] = COSTS) -> Table:
    """Make a table of the trials on the front of metric and a cost, for each of the costs, best metric first; a star
    marks a cost on whose front the trial is. See :func:`search.cost.pareto_trials`."""
    metric = study.experiment.metric
    fronts = {cost: {row.number for row in pareto_trials(study.rows, metric, cost)} for cost in costs}
    shown = [row for row in study.rows if any(row.number in front for front in fronts.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", metric, *(COST_UNITS[cost] for cost in costs)):
        table.add_column(name, no_wrap=True)
    for row in sorted(shown, key=lambda row: -gain(metric, row.metric or 0.0)):
        stars = ("*" if row.number in fronts[cost] else " " for cost in costs)
        cells = (f"{_cost(row, cost)} {star}" for cost, star in zip(costs, stars, strict=True))
        table.add_row(f"t{row.number:04d}", _number(row.metric), *cells)
    return table


def show_front(study: Standings, console: Console) -> None:
    """Print the front of metric and one cost, the objective's or else the time of an epoch, if any trial is on it."""
    cost = study.experiment.objective.per if study.experiment.objective else "seconds"
    table = pareto_table(study, [cost])
    if table.row_count:
        console.print(Text(spell(f"{pareto_heading(study.experiment.metric)}; all costs: python -m search.report")))
        console.print(table)


def _cost(row: TrialRow, cost: Cost) -> str:
    value = trial_cost(row, cost)
    return "-" if value is None else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def format_value(value: object) -> str:
    """Format a setting's value, short enough for a column."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
