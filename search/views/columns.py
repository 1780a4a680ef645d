"""Columns of a leaderboard: the parameters that tell most, as many as there is room for."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellseg.config import gain
from search.storage.tables import TrialRow

MOST_ROWS = 500
"""Trials that decide what tells most, the latest ones: a fraction of a millisecond for each parameter."""
LEAST_ROWS = 8
"""With fewer trials every parameter seems to explain everything."""
NUM_BEST = 10
MOST_CHARACTERS = 18
"""Longer names and values are cut."""


def telling_keys(rows: Sequence[TrialRow], keys: Sequence[str], metric: str) -> list[str]:
    """Sort parameters by what they tell about the trials, most first.

    Those that at least half of the best ten have, with different values, come before the others. Within both, the
    share of the variance in rank that a parameter explains alone decides, where there are :data:`LEAST_ROWS` trials
    with a value; then the order of the space. It is a hint for a column, not the importance of a report: trials of
    different length count alike.
    """
    scored = [row for row in rows if row.metric is not None][-MOST_ROWS:]
    params = [json.loads(row.params) for row in scored]
    gains = np.array([gain(metric, row.metric or 0.0) for row in scored])
    ranks = _ranks(gains)
    best = [params[index] for index in np.argsort(-gains, kind="stable")[:NUM_BEST]]

    def place(key: str) -> tuple[bool, float]:
        present = [repr(values[key]) for values in best if key in values]
        varies = len(set(present)) > 1 and 2 * len(present) >= len(best)
        return not varies, -round(_explained(params, key, ranks), 2)

    return sorted(keys, key=place)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in [0, 1], mean ranks for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - (counts + 1) / 2) / max(1, len(values)))[inverse]


def _explained(params: Sequence[Mapping[str, Any]], key: str, ranks: np.ndarray) -> float:
    """Share of the variance of the ranks that the parameter explains, corrected for the number of its values."""
    present = [index for index, values in enumerate(params) if key in values]
    if len(present) < LEAST_ROWS:
        return 0.0
    values, target = [params[index][key] for index in present], ranks[present]
    total = ((target - target.mean()) ** 2).sum()
    if total == 0:
        return 0.0
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = _ranks(np.array(values, dtype=float))
        groups = np.minimum((numbers * 4).astype(int), 3)  # quarters: an optimum in the middle counts too
    else:
        groups = np.unique([repr(value) for value in values], return_inverse=True)[1]
    counts = np.bincount(groups)
    sums = np.bincount(groups, weights=target)
    used = counts > 0
    between = (counts[used] * (sums[used] / counts[used] - target.mean()) ** 2).sum()
    free = len(target) - used.sum()
    share = len(present) / len(params)  # one that few trials have tells little about the others
    return 0.0 if free <= 0 else share * max(0.0, 1 - (1 - between / total) * (len(target) - 1) / free)


def fitting_keys(keys: Sequence[str], widths: Mapping[str, int], room: int | None) -> list[str]:
    """Choose keys, in their order, whose columns fit beside each other; None for all.

    Args:
        widths: of a key's column in characters; two are added for the gap.
        room: characters that are left for them.
    """
    if room is None:
        return list(keys)
    chosen = []
    for key in keys:
        if widths[key] + 2 <= room:
            chosen.append(key)
            room -= widths[key] + 2
    return chosen


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key as its name; of keys that share it, more."""
    parts = [key.split(".")[-1] for key in keys]
    return {key: part if parts.count(part) == 1 else key for key, part in zip(keys, parts, strict=True)}


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return the text, or its beginning and an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
