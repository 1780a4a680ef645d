"""Studies side by side: their histories, their best configs, and the images on which their best trials differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import UserError
from search.storage.store import StudyStore
from search.views.html.blocks import Block, Facts, Figure, Section, Table, Text
from search.views.html.overview import answer_section
from search.views.html.page import write_page
from search.views.html.predictions import Validation, validate
from search.views.html.quality import RESAMPLES, Quality, f1
from search.views.html.source import Source, thin
from search.views.leaderboard import format_value
from search.views.standings import StudyTables
from search.views.summary import best_so_far, duration

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999")
MOST_POINTS = 1000


@dataclass(frozen=True)
class Difference:
    """AP50 of a study's best trial against the first study's, on the images that both were validated on."""

    name: str
    num_images: int
    values: tuple[float, float]
    """AP50 of the first study and of this one."""
    low: float
    high: float
    """95 % interval of the difference: the same images drawn for both."""
    share: float
    """Share of the draws in which this one is better."""


@dataclass(frozen=True)
class Comparison:
    """Studies that are compared, the first of them with each other one."""

    sources: Sequence[Source]
    validations: Sequence[Validation | None]
    qualities: Sequence[Quality | None]
    problems: Sequence[str]
    """Why what a study's best trial finds is not known; empty where it is."""
    differences: Sequence[Difference]

    def describe(self) -> list[str]:
        """Describe the comparison in lines for people."""
        lines = []
        for source in self.sources:
            best = f"best {_value(source)} by t{source.ranked[0].number:04d}" if source.ranked else "no value yet"
            lines.append(f"{source.name}: {source.metric} {best}, {len(source.rows)} trials, {_hours(source)}")
        lines += [_describe(difference, self.sources[0].name) for difference in self.differences]
        lines += [f"not compared image by image: {problem}" for problem in self.problems if problem]
        return lines


def compare_studies(stores: Sequence[StudyStore]) -> Comparison:
    """Compare studies with the same metric.

    Raises:
        UserError: their metrics differ, or one cannot be read.
    """
    sources = [Source(StudyTables.of(store)) for store in stores]
    metrics = {source.name: source.metric for source in sources}
    if len(set(metrics.values())) > 1:
        found = ", ".join(f"{metric} ({name})" for name, metric in metrics.items())
        raise UserError(f"--study: compared studies must have one metric, but got {found}. Compare others.")
    validations, problems = [], []
    for source in sources:
        validation, problem = None, f"{source.name}: no trial has a value yet."
        if source.ranked:
            try:
                validation, problem = validate(source.store, source.ranked[0]), ""
            except UserError as error:
                problem = f"{source.name}: {error}"
        validations.append(validation)
        problems.append(problem)
    qualities = [None if v is None else Quality(v.predictions, v.truths, v.class_names) for v in validations]
    comparison = Comparison(sources, validations, qualities, problems, [])
    differences = []
    for place in range(1, len(sources)):
        common, problem = _common_images(comparison, place)
        if common:
            differences.append(_difference(comparison, place, common))
        elif problem:
            problems[place] = problem
    return Comparison(sources, validations, qualities, problems, differences)


def _common_images(comparison: Comparison, place: int) -> tuple[list[tuple[int, int]], str]:
    """Positions of the images that the first study and another one were validated on; or why there are none."""
    first, other = comparison.validations[0], comparison.validations[place]
    if first is None or other is None:
        return [], ""
    name = comparison.sources[place].name
    if first.data.fingerprint != other.data.fingerprint:
        return [], f"{name}: its data are others."
    position = {index: at for at, index in enumerate(first.indices)}
    common = [(position[index], at) for at, index in enumerate(other.indices) if index in position]
    return common, "" if common else f"{name}: it was validated on other images."


def _difference(comparison: Comparison, place: int, common: Sequence[tuple[int, int]]) -> Difference:
    """Compare by a paired bootstrap: what differs between images hits both alike, and goes out of the difference."""
    pair = (comparison.qualities[0], comparison.qualities[place])
    mine, theirs = pair
    assert mine is not None and theirs is not None
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(common), np.full(len(common), 1 / len(common)), size=RESAMPLES)

    def weights(count: int, side: int, draw: np.ndarray) -> np.ndarray:
        weights_I = np.zeros(count)
        weights_I[[images[side] for images in common]] = draw
        return weights_I

    def values(draw: np.ndarray) -> tuple[float, float]:
        return (
            mine.ap50(weights(len(mine.images), 0, draw)),
            theirs.ap50(weights(len(theirs.images), 1, draw)),
        )

    drawn = np.array([values(draw) for draw in draws])
    gaps = drawn[:, 1] - drawn[:, 0]
    low, high = np.quantile(gaps, [0.025, 0.975])
    share = float((gaps > 0).mean() + (gaps == 0).mean() / 2)
    everything = values(np.ones(len(common)))
    return Difference(comparison.sources[place].name, len(common), everything, float(low), float(high), share)


def _describe(difference: Difference, first: str) -> str:
    gap = difference.values[1] - difference.values[0]
    verdict = "no clear difference"
    if difference.low > 0 or difference.high < 0:
        verdict = "better" if gap > 0 else "worse"
    return (
        f"{difference.name} against {first}: AP50 {difference.values[1]:.4f} against {difference.values[0]:.4f}, "
        f"{gap:+.4f} (95 % {difference.low:+.4f} to {difference.high:+.4f}, {difference.num_images} common images): "
        f"{verdict}; ahead in {difference.share:.0%} of {RESAMPLES} draws"
    )


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the page; return where it is.

    Raises:
        UserError: the file cannot be written.
    """
    names = [source.name for source in comparison.sources]
    sections = [
        Section("answer", "The answer", [_facts(comparison), *(Text(line) for line in comparison.describe())]),
        _histories(comparison),
        _configs(comparison),
        *_images(comparison),
        *(
            Section(f"best-{at}", f"Best of {source.name}", answer_section(source, quality, _export(source)).blocks)
            for at, (source, quality) in enumerate(zip(comparison.sources, comparison.qualities, strict=True))
        ),
    ]
    subtitle = f"{comparison.sources[0].metric}, each with the first, {names[0]}"
    write_page(path, f"Studies {' and '.join(names)}", subtitle, sections)
    return path


def _export(source: Source) -> str:
    return f"cellseg-search export --best --study {source.name!r}"


def _value(source: Source) -> str:
    return f"{source.ranked[0].metric:.4f}" if source.ranked else "none"


def _hours(source: Source) -> str:
    return f"{duration(sum(row.seconds for row in source.rows))} in epochs"


def _facts(comparison: Comparison) -> Facts:
    return Facts([(source.name, f"{_value(source)}") for source in comparison.sources])


def _histories(comparison: Comparison) -> Section:
    """The best so far against trials and against the time that trials took."""
    figures: list[Block] = []
    for title, by_time in (("trials", False), ("hours in epochs, all trials together", True)):
        traces = []
        for place, source in enumerate(comparison.sources):
            history = best_so_far(source.rows, source.metric)
            hours = np.cumsum([row.seconds for row, _ in history]) / 3600
            shown = thin(range(len(history)), MOST_POINTS)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": source.name,
                    "x": [float(hours[index]) if by_time else index + 1 for index in shown],
                    "y": [history[index][1] for index in shown],
                    "line": {"shape": "hv", "color": COLORS[place % len(COLORS)], "width": 2.5},
                }
            )
        layout = {"xaxis": {"title": title}, "yaxis": {"title": comparison.sources[0].metric}}
        figures.append(Figure(traces, layout, small=True))
    return Section("history", "History of the best", figures)


def _configs(comparison: Comparison) -> Section:
    """The fields in which the best configs differ."""
    configs = [json.loads(source.ranked[0].config) if source.ranked else {} for source in comparison.sources]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    rows: list[list[Any]] = [
        [key, *(format_value(config[key]) if key in config else "-" for config in configs)] for key in differing
    ]
    headers = ["field", *(source.name for source in comparison.sources)]
    blocks: list[Block] = [Text(f"{len(keys) - len(differing)} fields are the same.")]
    return Section("configs", "Best configs: what differs", [*blocks, Table(headers, rows)] if rows else blocks)


def _images(comparison: Comparison) -> list[Section]:
    """The images on which two best trials differ most."""
    sections = []
    for place in range(1, len(comparison.sources)):
        common, _ = _common_images(comparison, place)
        first, other = comparison.qualities[0], comparison.qualities[place]
        validation = comparison.validations[place]
        if not common or first is None or other is None or validation is None:
            continue
        mine, theirs = first.per_image(), other.per_image()
        pairs = [
            (validation.data.names[validation.indices[at]], f1(*mine[before]), f1(*theirs[at])) for before, at in common
        ]
        pairs.sort(key=lambda pair: pair[2] - pair[1])
        names = (comparison.sources[0].name, comparison.sources[place].name)
        scatter = {
            "type": "scatter",
            "mode": "markers",
            "x": [pair[1] for pair in pairs],
            "y": [pair[2] for pair in pairs],
            "text": [pair[0] for pair in pairs],
            "marker": {"color": "#0072B2", "size": 8, "opacity": 0.7},
            "showlegend": False,
        }
        line = {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"dash": "dot", "color": "#888"},
            "showlegend": False,
            "hoverinfo": "skip",
        }
        layout = {"xaxis": {"title": f"F1 of {names[0]}"}, "yaxis": {"title": f"F1 of {names[1]}"}}
        rows = [[name, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}"] for name, a, b in pairs]
        note = "F1 of each image, at the score that maximises it over all images of a study."
        blocks: list[Block] = [Figure([scatter, line], layout, note), Table(["image", *names, "difference"], rows)]
        sections.append(Section(f"images-{place}", f"{names[1]} against {names[0]}, image by image", blocks))
    return sections
