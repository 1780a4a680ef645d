"""The record of a study's trials: an in-memory Optuna study, told what was proposed and how it ended.

It decides nothing. :mod:`search.sampling.sampler` proposes, or a sampler of Optuna's (:mod:`search.sampling.named`).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search.sampling.protocol import Outcome
from search.space import Domain, Params
from search.space.settings import Direction

MEMORY = "memory"
"""Name of the constraint that an infeasible trial violates."""

_STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
    Outcome.INFEASIBLE: TrialState.PRUNED,
}


class Record:
    """Trials as Optuna knows them, by our numbers."""

    def __init__(self, domains: Mapping[str, Domain], direction: Direction):
        self._domains = domains
        self._storage = InMemoryStorage()
        self.study = optuna.create_study(storage=self._storage, direction=direction)
        """Optuna's trial numbers are ours only while no number was skipped: ours is user_attrs["trial"]."""
        self._study_id = self._storage.get_study_id_from_name(self.study.study_name)
        self._running: dict[int, int] = {}  # number -> Optuna's id
        self._histories: dict[int, dict[int, float]] = {}  # of running trials: epoch -> value

    def start(self, number: int, params: Mapping[str, Any]) -> None:
        """Enter a trial that begins or continues."""
        assert number not in self._running, number
        trial = frozen_trial(self._domains, number, params, None)
        self._running[number] = self._storage.create_new_trial(self._study_id, trial)
        self._histories[number] = {}

    def ask(self, number: int, sampler: BaseSampler, choose: Callable[[Trial], Params]) -> Params:
        """Enter a trial that begins with the values that ``choose`` lets one of Optuna's samplers suggest."""
        assert number not in self._running, number
        self.study.sampler = sampler
        trial = self.study.ask()
        params = choose(trial)
        trial.set_user_attr("trial", number)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        # Samplers note what they drew here, for keys too that turned out to be inactive, and would look at it while the
        # trial runs. Our tables do not hold that: after a kill, they would propose something else.
        for name in self._storage.get_trial(trial_id).system_attrs:
            self._storage.set_trial_system_attr(trial_id, name, "")
        self._running[number] = trial_id
        self._histories[number] = {}
        return params

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Enter the value of a running trial after an epoch, unless that epoch has one; whether it had none.

        Raises:
            KeyError: the trial is not running.
        """
        history = self._histories[number]
        if epoch in history:
            return False
        history[epoch] = value
        self._storage.set_trial_intermediate_value(self._running[number], epoch, value)
        return True

    def end(self, number: int, outcome: Outcome, value: float | None, reason: str | None) -> None:
        """Enter the end of a running trial; see :meth:`search.sampling.protocol.Sampler.tell`.

        Raises:
            KeyError: the trial is not running.
        """
        check_value(number, outcome, value)
        trial_id, history = self._running.pop(number), self._histories.pop(number)
        if reason:
            self._storage.set_trial_user_attr(trial_id, "reason", reason)
        if outcome is Outcome.INFEASIBLE:
            for key, violation in frozen_trial({}, number, {}, outcome).system_attrs.items():
                self._storage.set_trial_system_attr(trial_id, key, violation)
        shown = _shown_value(outcome, value, history)
        self._storage.set_trial_state_values(trial_id, _STATES[outcome], None if shown is None else [shown])

    def add(self, trial: FrozenTrial) -> None:
        """Enter a trial that :func:`frozen_trial` made and that has ended."""
        self.study.add_trial(trial)


def frozen_trial(
    domains: Mapping[str, Domain],
    number: int,
    params: Mapping[str, Any],
    outcome: Outcome | None,
    *,
    value: float | None = None,
    history: Mapping[int, float] = MappingProxyType({}),
    reason: str | None = None,
) -> FrozenTrial:
    """Make a trial as Optuna records it; ``optuna.Study.add_trial`` takes it.

    Args:
        domains: of every key in ``params``.
        outcome: how it ended, or None for one that runs.
        value: the best objective, for COMPLETE only.
        history: its finite reports, by epoch.
    """
    attributes: dict[str, Any] = {"trial": number}
    if reason:
        attributes["reason"] = reason
    return optuna.create_trial(
        state=TrialState.RUNNING if outcome is None else _STATES[outcome],
        value=_shown_value(outcome, value, history),
        params=dict(params),
        distributions={key: domains[key].distribution() for key in params},
        intermediate_values=dict(history),
        user_attrs=attributes,
        constraints={MEMORY: 1.0} if outcome is Outcome.INFEASIBLE else None,
    )


def check_value(number: int, outcome: Outcome, value: float | None) -> None:
    """Assert that a complete trial has a finite value and that no other trial has one."""
    finite = value is not None and math.isfinite(value)
    assert finite if outcome is Outcome.COMPLETE else value is None, (number, outcome, value)


def _shown_value(outcome: Outcome | None, value: float | None, history: Mapping[int, float]) -> float | None:
    """The value of a trial in Optuna: of one that was stopped its last report, as Optuna's own ``tell`` does."""
    stopped = outcome in (Outcome.PRUNED, Outcome.INFEASIBLE)
    return history[max(history)] if stopped and history else value
