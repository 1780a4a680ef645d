"""A search without training: workers that take the next event from learning curves known in advance."""

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.lcbench import Curve


@dataclass(frozen=True, slots=True)
class Resume:
    """Instead of a new trial: one that was stopped goes on from its last epoch."""

    number: int


class Policy(Protocol):
    """Decisions of a search. Trials are numbered in the order in which they begin, from 0."""

    def ask(self, number: int) -> Mapping[str, Any] | Resume:
        """The params of a new trial, which gets this number, or what to do instead."""

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        """A trial's metric (larger is better) and validation loss after an epoch; whether it goes on. After the last
        epoch of its curve the answer is ignored."""


@dataclass(frozen=True)
class Run:
    """Result of a simulated search."""

    best: np.ndarray
    """(epochs,) best metric of any trial after 1, 2, 3 ... epochs trained by all workers together."""
    seconds: np.ndarray
    """(epochs,) wall-clock time at that moment, in seconds of the simulated workers."""
    num_trials: int


def simulate(
    policy: Policy,
    curve_of: Callable[[Mapping[str, Any]], Curve | None],
    workers: int,
    budget: int,
    goal: float = np.inf,
    at_least: int = 0,
) -> Run:
    """Run ``policy`` on ``workers`` until a trial has shown ``goal``, or they have trained ``budget`` epochs together.

    Each worker trains an epoch for as long as the curve says, reports it, and goes on or takes the next trial at once.
    Proposals, checkpoints and resuming cost no time.

    Args:
        curve_of: the curve of a new trial's params. None: there is nothing left to train, and the worker stays idle.
        at_least: epochs to be trained also if the goal is reached before.
    """
    best, seconds = np.empty(budget), np.empty(budget)
    incumbent = -np.inf
    events: list[tuple[float, int, int]] = []  # (end of the epoch, tie-breaker, trial)
    curves: dict[int, Curve] = {}
    trained: dict[int, int] = {}  # epochs by trial
    num_events = 0

    def train(number: int, now: float) -> None:
        """The trial's next epoch begins."""
        nonlocal num_events
        heapq.heappush(events, (now + curves[number].seconds[trained[number]], num_events, number))
        num_events += 1

    def begin(now: float) -> None:
        """A worker is free."""
        number = len(curves)
        answer = policy.ask(number)
        if isinstance(answer, Resume):
            number = answer.number
        elif (curve := curve_of(answer)) is None:
            return
        else:
            curves[number], trained[number] = curve, 0
        train(number, now)

    for _ in range(workers):
        begin(0.0)
    done = 0
    while events and done < budget and (incumbent < goal or done < at_least):
        now, _, number = heapq.heappop(events)
        curve, epoch = curves[number], trained[number] + 1
        trained[number] = epoch
        value = float(curve.accuracy[epoch - 1])
        incumbent = max(incumbent, value)
        best[done], seconds[done] = incumbent, now
        done += 1
        if policy.report(number, epoch, value, float(curve.cross_entropy[epoch - 1])) and epoch < len(curve.accuracy):
            train(number, now)
        else:
            begin(now)
    return Run(best=best[:done], seconds=seconds[:done], num_trials=len(curves))
