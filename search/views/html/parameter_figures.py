"""Figures of what the parameters did: importance, slices and parallel coordinates, all at one rung."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

from search.sampling.protocol import Outcome
from search.space import Range
from search.storage.tables import TrialRow
from search.views.columns import short_names
from search.views.html.blocks import Block, Figure, Section, Text
from search.views.html.source import Source, thin

LEAST_TRIALS = 10
"""Fewer say nothing about importance."""
MOST_TRIALS, MOST_LINES, MOST_SLICES, MOST_AXES = 1500, 150, 12, 8


def parameter_sections(source: Source) -> list[Section]:
    """Show importance, slices and parallel coordinates."""
    if not source.experiment.is_search:
        return []
    epoch = source.common_epoch
    values = source.values_at(epoch) if epoch is not None else {}
    if len(values) < LEAST_TRIALS:
        count = f"{len(values)} trials reached epoch {epoch}" if epoch is not None else "no trial has a value"
        text = Text(f"Importance needs {LEAST_TRIALS} trials that reached the same epoch; {count}.")
        order = list(source.experiment.domains)
        slices = [_slice(source, key, values) for key in order[:MOST_SLICES]] if values else []
        return [Section("importance", "Which parameters matter", [text, *slices])]
    rows = {row.number: row for row in source.rows}
    best = sorted(values, key=lambda number: -source.gain(values[number]))
    chosen = {*best[: MOST_TRIALS // 3], *thin(sorted(values), MOST_TRIALS * 2 // 3)}
    study = _optuna_study(source, [rows[number] for number in sorted(chosen)], values)
    importance = _importance(study)
    order = sorted(source.experiment.domains, key=lambda key: -importance.get(key, 0.0))
    where = f"Measured at epoch {epoch}, which {len(values)} trials reached (n = {len(chosen)} used)."
    few = {*best[: MOST_LINES // 3], *thin(sorted(values), MOST_LINES * 2 // 3)}
    return [
        Section("importance", "Which parameters matter", [_bars(order, importance, where)]),
        Section(
            "slices",
            "Slices",
            [
                *(_slice(source, key, {number: values[number] for number in chosen}) for key in order[:MOST_SLICES]),
                Text(f"The {min(MOST_SLICES, len(order))} most important of {len(order)} parameters. {where}"),
            ],
        ),
        Section(
            "parallel",
            "Parallel coordinates",
            _parallel(
                _optuna_study(source, [rows[number] for number in sorted(few)], values), order[:MOST_AXES], len(few)
            ),
        ),
    ]


def _optuna_study(source: Source, rows: Sequence[TrialRow], values: dict[int, float]) -> Any:
    """The trials as an Optuna study, complete with their values at the rung."""
    import optuna

    from search.sampling.record import frozen_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=source.experiment.direction)
    study.add_trials(
        [
            frozen_trial(
                source.experiment.domains,
                row.number,
                json.loads(row.params),
                Outcome.COMPLETE,
                value=values[row.number],
                history={1: values[row.number]},
                reason="",
            )
            for row in rows
        ]
    )
    return study


def _importance(study: Any) -> dict[str, float]:
    """Importance by PED-ANOVA, which needs no model and bears conditional parameters; shares that sum to 1."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls it experimental
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def _bars(order: Sequence[str], importance: dict[str, float], where: str) -> Figure:
    shown = list(order[:30])[::-1]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [importance.get(key, 0.0) for key in shown],
        "y": shown,
        "marker": {"color": "#0072B2"},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": "share of what sets the best tenth of the trials apart (PED-ANOVA)"},
        "yaxis": {"automargin": True},
        "height": 140 + 22 * len(shown),
    }
    return Figure([trace], layout, f"{where} Values near zero cannot be told from chance.")


def _slice(source: Source, key: str, values: dict[int, float]) -> Figure:
    """A parameter against the objective."""
    domain = source.experiment.domains[key]
    params = {row.number: json.loads(row.params) for row in source.rows if row.number in values}
    numbers = [number for number in values if key in params.get(number, {})]
    is_number = isinstance(domain, Range)
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [params[number][key] if is_number else str(params[number][key]) for number in numbers],
        "y": [values[number] for number in numbers],
        "text": [f"t{number:04d}" for number in numbers],
        "marker": {
            "size": 6,
            "opacity": 0.7,
            "color": "#3B8FD0",
        },
        "showlegend": False,
    }
    axis: dict[str, Any] = {"title": short_names(list(source.experiment.domains))[key]}
    axis["type"] = "category"
    if isinstance(domain, Range):
        axis["type"] = "log" if domain.log else "linear"
    return Figure([trace], {"xaxis": axis, "yaxis": {"title": source.metric}, "height": 280}, small=True)


def _parallel(study: Any, keys: Sequence[str], count: int) -> list[Block]:
    """Optuna's own figure."""
    from optuna.visualization import plot_parallel_coordinate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = json.loads(plot_parallel_coordinate(study, params=list(keys)).to_json())
    figure["layout"].pop("template", None)
    figure["layout"].pop("title", None)
    note = f"{count} trials: the best of them, and others chosen evenly. Made by Optuna."
    return [Figure(figure["data"], figure["layout"] | {"height": 480}, note)]
