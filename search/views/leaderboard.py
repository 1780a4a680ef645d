"""The leaderboard, as wide as there is room for, and the front of metric and cost."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellseg.cli import spell
from cellseg.config import gain
from search.cost import COSTS, Objective, pareto_trials, trial_cost
from search.space.settings import COST_UNITS, Cost
from search.storage.tables import TrialRow
from search.views.columns import cut, fitting_keys, short_names, telling_keys
from search.views.standings import Standings

MAX_ROWS = 15
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


def make_console() -> Console:
    """Make the terminal's console, or one for standard output as wide as a log may be."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def state_counts(rows: Iterable[TrialRow]) -> str:
    """Count the trials in each state, in words; empty for none."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state.lower()}" for state in STYLES if counts[state])


def leaderboard_table(
    study: Standings,
    max_rows: int = MAX_ROWS,
    width: int | None = None,
    telling: Sequence[str] | None = None,
    *,
    running: bool = True,
) -> Table:
    """Make a table of the running trials and the best ended ones, best first, with the parameters that tell most.

    Args:
        width: of the table in characters: as many parameters are shown as fit. None: all of them.
        telling: the parameters, those that tell most first. None: sorted here, or as in the space if all are shown.
        running: whether running trials are among them; they count for the ranks anyway.
    """
    experiment, metric = study.experiment, study.experiment.metric
    objective = Objective.of(metric, experiment.objective)
    ranked = study.leaderboard
    num_ranked, with_rank = len(ranked), {row.number for row in ranked}
    ranked += [row for row in study.rows if row.number not in with_rank and row.state != "FAILED"]
    rank_of = {row.number: str(rank) if rank <= num_ranked else "" for rank, row in enumerate(ranked, start=1)}
    if not running:
        ranked = [row for row in ranked if row.state != "RUNNING"]
    # Running trials are always shown: they are what a waiting person looks for.
    shown_running = [row for row in ranked if row.state == "RUNNING"]
    best = [row for row in ranked if row.state != "RUNNING"][: max(0, max_rows - len(shown_running))]
    shown_numbers = {row.number for row in (*shown_running, *best)}
    shown = [row for row in ranked if row.number in shown_numbers]
    weighed = ["objective", COST_UNITS[objective.per]] if objective.per else []
    headers = ["", "trial", "state", "epochs", metric, *weighed]
    cells = [
        [
            rank_of[row.number],
            f"t{row.number:04d}",
            row.state.lower(),
            f"{row.epochs}/{experiment.epochs}",
            "" if row.metric is None else f"{row.metric:.4f} @{row.best_epoch}",
            *([_number(objective.trial_value(row)), _cost(row, objective.per)] if objective.per else []),
        ]
        for row in shown
    ]
    fixed = [max([len(header), *(len(row[i]) for row in cells)]) for i, header in enumerate(headers)]
    keys, names, values = _parameters(
        study, shown, None if width is None else width - sum(fixed) - 2 * len(fixed), telling
    )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header, least in zip(headers, fixed, strict=True):
        table.add_column(header, no_wrap=True, min_width=least)
    for key in keys:
        table.add_column(names[key], no_wrap=True)
    for row, texts, params in zip(shown, cells, values, strict=True):
        styled = [Text(text, style=STYLES[row.state] if index == 2 else "") for index, text in enumerate(texts)]
        table.add_row(*styled, *(Text(params[key]) for key in keys))
    hidden = len(experiment.domains) - len(keys)
    more = [f"{len(ranked) - len(shown)} more"] if len(ranked) > len(shown) else []
    more += [f"{hidden} more parameters in the report"] if hidden else []
    if more:
        table.caption_justify = "left"
        table.caption = cut("and " + ", ".join(more), width or LOG_WIDTH)
    return table


def _parameters(
    study: Standings, shown: Sequence[TrialRow], room: int | None, telling: Sequence[str] | None
) -> tuple[list[str], dict[str, str], list[dict[str, str]]]:
    """The keys that are shown, their names, and for each trial the values as texts."""
    everything = list(study.experiment.domains)
    if telling is None:
        telling = everything if room is None else telling_keys(study.rows, everything, study.experiment.metric)
    values = []
    for row in shown:
        params = json.loads(row.params)
        texts = {key: format_value(params[key]) if key in params else "-" for key in everything}
        values.append(texts if room is None else {key: cut(text) for key, text in texts.items()})
    names = short_names(everything)
    if room is not None:
        names = {key: cut(name) for key, name in names.items()}
    widths = {key: max([len(names[key]), *(len(texts[key]) for texts in values)]) for key in everything}
    return fitting_keys(telling, widths, room), names, values


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
