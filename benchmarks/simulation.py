"""A search without training: workers that take the next event from learning curves known in advance."""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.lcbench import EPOCHS, Curve


class Policy(Protocol):
    """What a search decides. Numbers are given to trials in the order in which they begin, from 0."""

    def ask(self, number: int) -> Mapping[str, Any]:
        """The params of a new trial."""

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        """A trial's metric (larger is better) and validation loss after an epoch; whether it goes on. After the last
        epoch, :data:`EPOCHS`, the answer is ignored."""


@dataclass(frozen=True)
class Run:
    """What a simulated search reached."""

    best: np.ndarray
    """(epochs,) best metric of any trial after 1, 2, 3 ... epochs trained by all workers together."""
    seconds: np.ndarray
    """(epochs,) wall-clock time at that moment, in seconds of the simulated workers."""
    num_trials: int


def simulate(policy: Policy, curve_of: Callable[[Mapping[str, Any]], Curve], workers: int, budget: int) -> Run:
    """Run ``policy`` on ``workers`` until they have trained ``budget`` epochs together.

    Each worker trains an epoch for as long as the curve says, reports it, and goes on or takes the next trial at once.
    Proposals cost no time.
    """
    best, seconds = np.empty(budget), np.empty(budget)
    incumbent = -np.inf
    events: list[tuple[float, int, int, int]] = []  # (end of the epoch, tie-breaker, trial, epoch)
    curves: dict[int, Curve] = {}
    num_trials = 0
    num_events = 0

    def begin(now: float) -> None:
        nonlocal num_trials, num_events
        number, num_trials = num_trials, num_trials + 1
        curves[number] = curve_of(policy.ask(number))
        heapq.heappush(events, (now + curves[number].seconds[0], num_events, number, 1))
        num_events += 1

    for _ in range(workers):
        begin(0.0)
    for done in range(budget):
        now, _, number, epoch = heapq.heappop(events)
        curve = curves[number]
        value = float(curve.accuracy[epoch - 1])
        incumbent = max(incumbent, value)
        best[done], seconds[done] = incumbent, now
        goes_on = policy.report(number, epoch, value, float(curve.cross_entropy[epoch - 1]))
        if goes_on and epoch < EPOCHS:
            heapq.heappush(events, (now + curve.seconds[epoch], num_events, number, epoch + 1))
            num_events += 1
        else:
            del curves[number]
            begin(now)
    return Run(best=best, seconds=seconds, num_trials=num_trials)
