"""Figures of how a search went: the best so far, learning curves, rungs, and what quality costs."""

from collections.abc import Sequence
from typing import Any

from search.cost import COSTS, pareto_trials, trial_cost
from search.space.settings import COST_UNITS
from search.storage.tables import TrialRow
from search.views.html.blocks import Block, Facts, Figure, Section, Table, Text
from search.views.html.source import Source, thin
from search.views.summary import best_so_far

FATES = {
    "COMPLETE": ("#0072B2", "trained to the end"),
    "PRUNED": ("#E69F00", "stopped early"),
    "INFEASIBLE": ("#CC79A7", "did not fit into memory"),
    "FAILED": ("#D55E00", "failed"),
    "RUNNING": ("#009E73", "running"),
    "INTERRUPTED": ("#999999", "interrupted"),
}
"""State -> colour of Okabe and Ito, and words."""
MOST_POINTS, MOST_CURVES = 2000, 250


def history_section(source: Source) -> Section:
    """Show every trial by its end, and the best until then."""
    history = best_so_far(source.rows, source.metric)
    steps = [index for index, (_, best) in enumerate(history) if not index or best != history[index - 1][1]]
    shown = sorted({*thin(range(len(history)), MOST_POINTS), *steps})
    traces: list[dict[str, Any]] = []
    for state, (color, words) in FATES.items():
        points = [(index + 1, history[index][0]) for index in shown if history[index][0].state == state]
        if points:
            text = [f"t{row.number:04d}, {row.epochs} epochs" for _, row in points]
            traces.append(_markers(points, words, text, {"color": color, "opacity": 0.75}))
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": [index + 1 for index in shown],
            "y": [history[index][1] for index in shown],
            "line": {"shape": "hv", "width": 2.5, "color": "#56B4E9"},
        }
    )
    layout = {"xaxis": {"title": "trials, in the order of their ends"}, "yaxis": {"title": source.metric}}
    note = f"{len(history)} of {len(source.rows)} trials have a value. {_thinned(len(shown), len(history), 'trials')}"
    return Section("history", "History of the best", [Figure(traces, layout, note)])


def curves_section(source: Source) -> Section:
    """Show the learning curves, coloured by fate: the best of them, and others chosen evenly."""
    scored = [row.number for row in source.ranked]
    chosen = {*scored[: MOST_CURVES // 2], *thin(sorted(scored), MOST_CURVES // 2)}
    best = scored[0] if scored else None
    traces = []
    for state, (color, words) in FATES.items():
        x: list[int | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for row in source.rows:
            if row.state != state or row.number not in chosen or row.number == best:
                continue
            for epoch in source.epochs.get(row.number, []):
                x.append(epoch.epoch)
                y.append(epoch.metrics.get(source.metric))
                text.append(f"t{row.number:04d}")
            x.append(None)  # a gap between two trials
            y.append(None)
            text.append("")
        if x:
            traces.append(_curve(words, x, y, text, color, 1.2, 0.55))
    if best is not None:
        epochs = source.epochs.get(best, [])
        x, y = [epoch.epoch for epoch in epochs], [epoch.metrics.get(source.metric) for epoch in epochs]
        traces.append(_curve(f"best, t{best:04d}", x, y, [f"t{best:04d}"] * len(x), "#56B4E9", 3.5, 1.0))
    layout = {"xaxis": {"title": "epoch"}, "yaxis": {"title": f"validation {source.metric}"}, "hovermode": "closest"}
    return Section("curves", "Learning curves", [Figure(traces, layout, _thinned(len(chosen), len(scored), "trials"))])


def _curve(name: str, x: list, y: list, text: list[str], color: str, width: float, opacity: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) < 40 else "lines",
        "name": name,
        "x": x,
        "y": y,
        "text": text,
        "opacity": opacity,
        "line": {"color": color, "width": width},
        "marker": {"size": 4, "color": color},
    }


def rungs_section(source: Source) -> Section:
    """Show who was stopped at which rung, and why."""
    pruned = [row for row in source.rows if row.state == "PRUNED"]
    if not source.rungs:
        return Section("rungs", "Rungs", [Text("No trial is stopped early: the space has no asha.")])
    traces: list[dict[str, Any]] = []
    table = []
    stopped = {row.number: row.epochs for row in pruned}
    reasons = {row.number: row.detail for row in pruned}
    for goes_on, color, words in ((True, "#0072B2", "went on"), (False, "#E69F00", "stopped here")):
        x: list[float] = []
        y: list[float] = []
        text: list[str] = []
        for place, rung in enumerate(source.rungs):
            values = source.values_at(rung)
            here = [number for number in values if (stopped.get(number) != rung) == goes_on]
            here = thin(here, MOST_POINTS // 2 // len(source.rungs))
            # Those side by side are spread by their number, so that a trial is at the same place in every picture.
            x += [place + ((number * 0.618) % 1 - 0.5) * 0.6 for number in here]
            y += [values[number] for number in here]
            text += [f"t{number:04d} {reasons.get(number, '') if not goes_on else ''}" for number in here]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": words,
                "x": x,
                "y": y,
                "text": text,
                "hoverinfo": "text+y",
                "marker": {"color": color, "size": 7, "opacity": 0.7, "symbol": "circle" if goes_on else "x"},
            }
        )
    for rung in source.rungs:
        values = source.values_at(rung)
        gone = [row for row in pruned if row.epochs == rung]
        needed = max(gone, key=lambda row: row.ended or "").detail if gone else "-"
        table.append([rung, len(values), len(gone), len(values) - len(gone), needed])
    layout = {
        "xaxis": {
            "tickvals": list(range(len(source.rungs))),
            "ticktext": [f"epoch {rung}" for rung in source.rungs],
            "range": [-0.6, len(source.rungs) - 0.4],
        },
        "yaxis": {"title": f"best {source.metric} until then"},
        "hovermode": "closest",
    }
    headers = ["rung (epoch)", "arrived", "stopped", "went on", "why the last one was stopped"]
    return Section("rungs", "Rungs: who was stopped, and why", [Figure(traces, layout), Table(headers, table)])


def cost_section(source: Source) -> Section:
    """Show quality against time, parameters and memory, with the front of fully trained trials."""
    blocks: list[Block] = []
    for cost in COSTS:
        known = [(row, price) for row in source.rows if row.metric is not None and (price := trial_cost(row, cost))]
        if not known:
            continue
        front = sorted(pareto_trials(source.rows, source.metric, cost), key=lambda row: trial_cost(row, cost) or 0)
        traces: list[dict[str, Any]] = []
        for state in ("COMPLETE", "PRUNED", "RUNNING", "INTERRUPTED"):
            color, words = FATES[state]
            points = thin([(price, row) for row, price in known if row.state == state], MOST_POINTS // 3)
            if points:
                text = [f"t{row.number:04d}" for _, row in points]
                traces.append(_markers(points, words, text, {"color": color, "opacity": 0.6}))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "front",
                "x": [trial_cost(row, cost) for row in front],
                "y": [row.metric for row in front],
                "text": [f"t{row.number:04d}" for row in front],
                "line": {"color": "#009E73", "width": 2},
            }
        )
        layout = {"xaxis": {"title": COST_UNITS[cost]}, "yaxis": {"title": source.metric}, "hovermode": "closest"}
        blocks.append(Figure(traces, layout, small=True))
    machines = sorted({row.node for row in source.rows if row.node})
    if len(machines) > 1:
        blocks.append(Text(f"Seconds compare only between machines of one kind. Trials ran on {', '.join(machines)}."))
    note = Text(
        "On the front no fully trained trial is as good in both; trials that were stopped early are no measure."
    )
    return Section("cost", "Quality against cost", [*blocks, note] if blocks else [Text("No trial has a value yet.")])


def effort(rows: list[TrialRow], gpus_known: bool) -> Facts:
    """Sum up what the trials took."""
    hours = sum(row.seconds for row in rows) / 3600
    facts = [("epochs", f"{sum(row.epochs for row in rows):,}"), ("trial-hours", f"{hours:.2f}")]
    if gpus_known:
        facts.append(("GPU-hours", f"{sum(row.gpu_seconds or 0.0 for row in rows) / 3600:.2f}"))
    return Facts(facts)


def _thinned(shown: int, count: int, what: str) -> str:
    return f"{shown} of {count} {what} are drawn." if shown < count else ""


def _markers(
    points: Sequence[tuple[float, TrialRow]], name: str, text: list[str], marker: dict[str, Any]
) -> dict[str, Any]:
    """A trace with a marker for each trial: what is measured along x, and its metric."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x for x, _ in points],
        "y": [row.metric for _, row in points],
        "text": text,
        "marker": marker | {"size": 6},
    }
