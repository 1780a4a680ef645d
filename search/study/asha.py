"""Asynchronous successive halving: which trials are worth another epoch.

The stopping variant of Li et al., *A System for Massively Parallel Hyperparameter Tuning* (MLSys 2020): trials run
freely, and at a few epochs, the rungs, each is measured against those that were there before it. Nobody waits.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from search.space.settings import rung_epochs


@dataclass(frozen=True, slots=True)
class Arrival:
    """A trial at a rung."""

    value: float
    """The metric at the rung's epoch; larger is better."""
    tie_breaker: float
    """Decides between equal values; smaller is better."""
    went_on: bool
    """Whether it was not stopped there."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a report: whether the trial goes on, and at a rung why."""

    goes_on: bool
    epoch: int
    value: float
    """The trial's value; larger is better."""
    rank: int | None = None
    """The trial's place among those seen at the rung so far, 1 for the best; None where there is no rung."""
    num_seen: int = 0
    """Trials seen at the rung so far, this one included."""
    needed: float | None = None
    """The value that it had to beat, by the tie-breaker if it equals it; None for the first at a rung, and where there
    is none."""


class Asha:
    """Decides at every rung whether a trial goes on.

    A rung lies at epoch ``grace * reduction ** k`` for every k that puts it below ``max_epochs``. Of the n trials seen
    at a rung so far, the newcomer included, it goes on if fewer than n / reduction of them are ahead of it. So the
    first arrival always goes on, the second only as the better one, and in the long run one in ``reduction`` does.

    Ties: with a tie-breaker (say the validation loss) it decides. Among trials that are equal in that too, those that
    went on before count as ahead. Were all values equal, as with scores of zero in the first epochs, one trial in
    ``reduction`` would go on: neither all of them nor none.

    Args:
        grace: epochs that every trial gets, at least 1.
        reduction: at least 2.
        max_epochs: full length of a trial. At or below ``grace`` there is no rung and no trial is stopped.
    """

    def __init__(self, grace: int, reduction: int, max_epochs: int):
        assert grace >= 1 and reduction >= 2 and max_epochs >= 1
        self.reduction = reduction
        self._arrivals: dict[int, dict[int, Arrival]] = {
            epoch: {} for epoch in rung_epochs(grace, reduction, max_epochs)
        }

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which trials are stopped, in order. Epochs count from 1."""
        return tuple(self._arrivals)

    def rung(self, epoch: int) -> Mapping[int, Arrival]:
        """The trials seen at the rung of ``epoch``, by number, in the order in which they first came."""
        return MappingProxyType(self._arrivals[epoch])

    def report(
        self, trial: int, epoch: int, value: float, tie_breaker: float = 0.0, *, by_itself: bool = False
    ) -> Decision:
        """Decide whether ``trial`` goes on after ``epoch`` epochs.

        Only a report at a rung's very epoch enters that rung: a trial that was not measured there is never compared by
        a later, better-trained value. All other epochs, the last included, go on: a trial ends there by itself. A
        second report of the same trial at the same rung replaces the first.

        Args:
            value: the metric at that epoch, larger is better (:func:`cellseg.config.gain` makes it so); finite, because
                the caller ends other trials.
            tie_breaker: decides between equal values, smaller is better, finite. Give it always or never.
            by_itself: the trial ends here by itself: whatever the decision, it is not stopped.
        """
        assert math.isfinite(value) and math.isfinite(tie_breaker), (trial, epoch, value, tie_breaker)
        value = float(value)
        if epoch not in self._arrivals:
            return Decision(goes_on=True, epoch=epoch, value=value)
        rung, tie_breaker = self._arrivals[epoch], float(tie_breaker)
        others = [arrival for number, arrival in rung.items() if number != trial]
        num_seen = len(others) + 1
        num_ahead = _num_ahead(others, value, tie_breaker)
        goes_on = num_ahead < num_seen / self.reduction
        rung[trial] = Arrival(value, tie_breaker, goes_on or by_itself)
        num_places = math.ceil(num_seen / self.reduction)  # so many best trials go on
        best = sorted((other.value for other in others), reverse=True)
        return Decision(
            goes_on=goes_on,
            epoch=epoch,
            value=value,
            rank=num_ahead + 1,
            num_seen=num_seen,
            needed=best[num_places - 1] if len(best) >= num_places else None,
        )

    def replay(
        self,
        trial: int,
        history: Iterable[tuple[int, float] | tuple[int, float, float]],
        *,
        stopped: bool = False,
    ) -> None:
        """Enter a trial of an earlier run into the rungs at which it was judged, without deciding anew.

        Args:
            history: the arguments of its reports, ``(epoch, value)`` or ``(epoch, value, tie_breaker)``, in any order.
            stopped: it was stopped at the last rung among them. It passed all others.
        """
        reports = {report[0]: report[1:] for report in history}
        reached = [epoch for epoch in self.rungs if epoch in reports]
        for epoch in reached:
            value, tie_breaker = (*reports[epoch], 0.0)[:2]
            assert math.isfinite(value) and math.isfinite(tie_breaker), (trial, epoch, value, tie_breaker)
            self._arrivals[epoch][trial] = Arrival(value, tie_breaker, not (stopped and epoch == reached[-1]))


def _num_ahead(others: Iterable[Arrival], value: float, tie_breaker: float) -> int:
    """Count those that are better, or equal and went on."""
    mine = (value, -tie_breaker)
    count = 0
    for other in others:
        theirs = (other.value, -other.tie_breaker)
        count += theirs > mine or (theirs == mine and other.went_on)
    return count
