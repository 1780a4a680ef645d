"""The cost of a trial, and how it affects ranking: the front of metric and cost, and an objective of both."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from cellseg.config import gain
from search.space.settings import Cost, ObjectiveSettings

if TYPE_CHECKING:
    from search.storage.tables import EpochRow, TrialRow

COSTS: tuple[Cost, ...] = get_args(Cost)
"""The costs of a trial; each is a property of its config, so that trials of different length compare."""
DEFAULT_DOUBLING = ObjectiveSettings.model_fields["doubling"].default


def trial_cost(row: "TrialRow", cost: Cost) -> float | None:
    """Return a cost of a trial in :data:`~search.space.settings.COST_UNITS`, positive; None if it is not known.

    ``seconds``: of an epoch, see :func:`seconds_per_epoch`. They compare between machines of the same kind only.
    ``parameters``: trainable ones, in millions. ``memory``: the most at any time, in GiB.
    """
    counted, unit = {
        "seconds": (row.seconds_per_epoch, 1.0),
        "parameters": (row.parameters, 1e6),
        "memory": (row.peak_memory_bytes, 2.0**30),
    }[cost]
    return counted / unit if counted else None


def seconds_per_epoch(seconds: Sequence[float]) -> float | None:
    """Return the median duration of epochs. The first, which pays for start-up, counts only if it is the only one.

    Args:
        seconds: of the epochs, in order. 0: not known, as of an epoch that only a checkpoint tells of.

    Returns:
        None if no duration is known.
    """
    known = [value for value in seconds if value > 0]
    return statistics.median(known[1:] or known) if known else None


@dataclass(frozen=True, slots=True)
class Objective:
    """The value that ranks and prunes trials and that the sampler models: the metric, or the metric per cost.

    With a cost it is metric / cost ** w, for a loss metric * cost ** w, where w = log2(1 + doubling). So a trial of
    twice the cost ranks as high if its metric is better by the factor 1 + doubling. This is the weighted product of
    MnasNet (Tan et al. 2019, arXiv:1807.11626, equation 2 with alpha = beta = -w), who take 5 %. It multiplies, so
    that it weighs small early scores like large late ones, and so that no reference cost is needed: another one would
    scale all values alike.
    """

    metric: str
    """Name of the validation metric, whose values must be at least 0 if there is a cost."""
    per: Cost | None = None
    """None: the metric alone."""
    doubling: float = DEFAULT_DOUBLING

    @classmethod
    def of(cls, metric: str, settings: ObjectiveSettings | Mapping[str, Any] | None) -> "Objective":
        """Make the objective of a study with this metric; settings as an object, or as ``study.json`` holds them."""
        if isinstance(settings, ObjectiveSettings):
            settings = settings.model_dump()
        return cls(metric, **(settings or {}))

    @property
    def exponent(self) -> float:
        """Exponent of the cost by which a metric is multiplied: negative, for a loss positive."""
        return -gain(self.metric, math.log2(1 + self.doubling))

    def value(self, metric: float | None, row: "TrialRow") -> float | None:
        """Compute the objective of a trial with this metric at its present cost; None if one of them is not known."""
        if self.per is None or metric is None:
            return metric
        cost = trial_cost(row, self.per)
        return None if cost is None else metric * cost**self.exponent

    def trial_value(self, row: "TrialRow") -> float | None:
        """Compute the objective of a trial as it is now."""
        return self.value(row.metric, row)

    def values_by_epoch(self, row: "TrialRow", epochs: Sequence["EpochRow"]) -> dict[int, float]:
        """Compute the objective of a trial after each of its epochs, from its best metric and its cost until then.

        Args:
            epochs: all of the trial's, in order. Those without a metric or a known cost are left out.
        """
        best, memory, seconds, values = None, 0, [], {}
        for epoch in epochs:
            seconds.append(epoch.seconds)
            memory = max(memory, epoch.peak_memory_bytes or 0)
            if (metric := epoch.metrics.get(self.metric)) is None:
                continue
            best = metric if best is None else max(best, metric, key=lambda known: gain(self.metric, known))
            then = row
            if self.per is not None:
                then = replace(row, seconds_per_epoch=seconds_per_epoch(seconds), peak_memory_bytes=memory)
            if (value := self.value(best, then)) is not None:
                values[epoch.epoch] = value
        return values


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other dominates, by rising cost: none is at least as good in both and better in one.

    Args:
        points: (gain, cost): larger gains and smaller costs are better.

    Returns:
        Indices; of equal points all.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][1], -points[index][0])):
        if not front or points[index][0] > points[front[-1]][0] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def pareto_trials(rows: Sequence["TrialRow"], metric: str, cost: Cost) -> list["TrialRow"]:
    """List the trials on the front of metric and cost, the cheapest first.

    Only those that were trained to their end: the score of one that was stopped early is no measure of its config.
    """
    known = [
        (row, (gain(metric, row.metric), price))
        for row in rows
        if row.state == "COMPLETE" and row.metric is not None and (price := trial_cost(row, cost)) is not None
    ]
    return [known[index][0] for index in pareto_front([point for _, point in known])]
