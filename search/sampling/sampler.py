"""The record of a study's trials, told the truth about how they ended: a plain Optuna study, which the driver alone
writes.

:class:`StudySampler` keeps it in memory. What to propose next is decided in :mod:`search.sampling.proposer`.
"""

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from search.sampling.ahead import Ahead
from search.sampling.proposer import Proposer
from search.space import Params, Space

_MEMORY = "memory"
"""Name of the constraint that an infeasible trial violates."""


class Outcome(StrEnum):
    """How a trial ended."""

    COMPLETE = "COMPLETE"
    """Trained to its end."""
    PRUNED = "PRUNED"
    """Stopped because others were better."""
    FAILED = "FAILED"
    """Ended by an error or a loss that is not finite; says nothing about its config."""
    INFEASIBLE = "INFEASIBLE"
    """Does not fit into memory, and neither will its neighbours."""


_STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
    Outcome.INFEASIBLE: TrialState.PRUNED,
}


class StudySampler:
    """Proposes configs for numbered trials and learns how they fared.

    Call :meth:`ask` once for a trial, :meth:`report` after its epochs, :meth:`tell` at its end; for trials of a former
    run :meth:`replay`, before the first ask. The same calls with the same seed give the same proposals; the randomness
    of each comes from (seed, trial number), so a continued study does not repeat the draws of its first part.

    :meth:`prepare` makes proposals ahead. Without it, each follows from all that is known when it is asked for, whether
    that was learned or replayed; one that was made ahead may lack the latest results.
    """

    def __init__(self, space: Space, seed: int):
        self.space = space
        self._sampler = SpaceSampler(space, seed)
        self.study: optuna.Study = optuna.create_study(direction=space.direction, sampler=self._sampler)
        """The record. Trial numbers in it are ours only while no number was skipped: ours is user_attrs["trial"]."""
        self._running: dict[int, optuna.Trial] = {}
        self._starts = [dict(start) for start in space.start_from]
        self._next = 0  # the number after the largest seen

    def ask(self, number: int) -> Params:
        """The params of a new trial: the next untried start config, its open keys filled at random, or a proposal."""
        self._sampler.number = number
        if self._starts:
            params = self.space.sample(self._sampler.rng_of(number), self._starts.pop(0))
            return self._start(number, params)
        return self._start(number, None)

    def prepare(self, count: int) -> bool:
        """Make one of the next ``count`` proposals ahead, if one is missing or older than the latest result.

        Numbers of trials are taken to go on from the largest so far.

        Returns:
            Whether there was one to make: False means that ``count`` slots which came free now would find theirs ready.
        """
        return self._sampler.ahead.prepare(range(self._next + len(self._starts), self._next + count))

    def report(self, number: int, epoch: int, value: float) -> None:
        """The metric of a running trial after an epoch; finite. An epoch that was reported before is ignored."""
        assert math.isfinite(value), (number, epoch, value)
        trial = self._running[number]
        if epoch not in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
            trial.report(value, epoch)
            self._sampler.proposer.observe(number, epoch, value)

    def tell(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """The end of a running trial.

        A pruned trial has no value of its own: Optuna shows its last reported one, and leaves it out of best values.

        Args:
            value: the best metric, for COMPLETE only.
            reason: one line for people, kept as user_attrs["reason"].
        """
        _check_value(number, outcome, value)
        trial = self._running.pop(number)
        if reason:
            trial.set_user_attr("reason", reason)
        if outcome is Outcome.INFEASIBLE:
            trial.set_constraint(_MEMORY, 1.0)
        self.study.tell(trial, value, state=_STATES[outcome])
        self._sampler.proposer.end(number, value, infeasible=outcome is Outcome.INFEASIBLE)

    def replay(
        self,
        number: int,
        params: Mapping[str, Any],
        outcome: Outcome | None,
        *,
        value: float | None = None,
        epochs: Iterable[tuple[int, float]] = (),
        reason: str | None = None,
    ) -> None:
        """Enter a trial of a former run of the same space. A start config that it agrees with counts as tried.

        Args:
            outcome: how it ended, or None for a trial that goes on now and will be told about.
            value: as in :meth:`tell`.
            epochs: (epoch, metric) of its reports; those that are not finite are left out.
        """
        history = {epoch: metric for epoch, metric in epochs if math.isfinite(metric)}
        tried = next((start for start in self._starts if start.items() <= params.items()), None)
        if tried is not None:
            self._starts.remove(tried)
        if outcome is None:
            self._start(number, dict(params))
            for epoch, metric in history.items():
                self.report(number, epoch, metric)
            return
        _check_value(number, outcome, value)
        self._next = max(self._next, number + 1)
        self.study.add_trial(
            frozen_trial(self.space, number, params, outcome, value=value, history=history, reason=reason)
        )
        self._sampler.proposer.begin(number, params)
        for epoch, metric in history.items():
            self._sampler.proposer.observe(number, epoch, metric)
        self._sampler.proposer.end(number, value, infeasible=outcome is Outcome.INFEASIBLE)

    def _start(self, number: int, params: Params | None) -> Params:
        """A running trial with these params, or with proposed ones."""
        assert number not in self._running, number
        self._next = max(self._next, number + 1)
        if params is not None:
            self._sampler.ahead.clear()
            self.study.enqueue_trial(params)
        trial = self.study.ask()
        trial.set_user_attr("trial", number)
        params = self.space.suggest(lambda key: _suggest(trial, key, self.space.distribution(key)))
        self._running[number] = trial
        self._sampler.proposer.begin(number, params)
        return params


class SpaceSampler(optuna.samplers.BaseSampler):
    """Optuna's interface to the proposals for one space.

    Optuna asks for all values of a trial at once (``sample_relative``): conditions and duplicates are seen as a whole.
    """

    def __init__(self, space: Space, seed: int):
        self._distributions = {key: space.distribution(key) for key in space.domains}
        self._seed = seed
        self.proposer = Proposer(space, seed)
        self.ahead = Ahead(self.proposer, self.rng_of)
        self.number = 0
        """The trial that is being asked for."""

    def rng_of(self, number: int) -> np.random.Generator:
        """The randomness of a trial."""
        return np.random.default_rng([self._seed, number])

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All sampled keys: which of them are active is decided while proposing."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal for a new trial."""
        return self.ahead.take(self.number)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: a proposal, and an enqueued trial, has every active key."""
        raise AssertionError(f"{param_name} is missing in the proposal for trial {trial.number}")


def frozen_trial(
    space: Space,
    number: int,
    params: Mapping[str, Any],
    outcome: Outcome | None,
    *,
    value: float | None = None,
    history: Mapping[int, float] = MappingProxyType({}),
    reason: str | None = None,
) -> FrozenTrial:
    """A trial as Optuna records it; add it with ``optuna.Study.add_trial``.

    Args:
        outcome: how it ended, or None for one that runs.
        value: as in :meth:`StudySampler.tell`.
        history: its finite reports, by epoch.
    """
    stopped = outcome in (Outcome.PRUNED, Outcome.INFEASIBLE)
    return optuna.create_trial(
        state=TrialState.RUNNING if outcome is None else _STATES[outcome],
        value=history[max(history)] if stopped and history else value,  # as Optuna does when it is told
        params=dict(params),
        distributions={key: space.distribution(key) for key in params},
        intermediate_values=dict(history),
        user_attrs={"trial": number} | ({"reason": reason} if reason else {}),
        constraints={_MEMORY: 1.0} if outcome is Outcome.INFEASIBLE else None,
    )


def _suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> Any:
    """Optuna has no public call for 'suggest from this distribution'."""
    match distribution:
        case CategoricalDistribution():
            return trial.suggest_categorical(key, distribution.choices)
        case IntDistribution():
            return trial.suggest_int(
                key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
        case FloatDistribution():
            return trial.suggest_float(
                key, distribution.low, distribution.high, step=distribution.step, log=distribution.log
            )
    raise AssertionError(distribution)


def _check_value(number: int, outcome: Outcome, value: float | None) -> None:
    """A complete trial has a finite value, and no other has one."""
    finite = value is not None and math.isfinite(value)
    assert finite if outcome is Outcome.COMPLETE else value is None, (number, outcome, value)
