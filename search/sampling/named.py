"""Optuna's own samplers under our scheduler, chosen by name: ``sampler: tpe``.

The record of trials is their only state. Each proposal is made by a new sampler object, whose seed comes from (seed,
trial number), out of the trials as they are recorded: so a study that was killed goes on as if it had not been.
docs/sampling.md compares these samplers, and says what each makes of conditions, pruned trials and trials that run.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.trial import Trial

from search.sampling.protocol import Outcome
from search.sampling.record import Record, check_value, frozen_trial
from search.sampling.starts import Starts
from search.space import Choices, Domain, Params
from search.space.conditions import DEFAULTS
from search.space.settings import Direction
from search.space.space import fill, sample

if TYPE_CHECKING:
    from search.sampling.cmaes import CmaEs
    from search.sampling.qmc import Qmc


class OptunaSampler:
    """Proposes configs by a sampler of Optuna. A :class:`search.sampling.protocol.Sampler`.

    Args:
        name: of the sampler: random, tpe, gp, cmaes or qmc.
        domains: the sampled keys, each after the keys that its condition names.
        fixed: keys that have one value in all trials.
        start_from: values of some sampled keys, to be tried first, in this order.
        direction: ``maximize`` or ``minimize``.
        seed: every draw derives from it.
    """

    def __init__(
        self,
        name: str,
        domains: Mapping[str, Domain],
        *,
        fixed: Mapping[str, Any],
        start_from: Sequence[Params],
        direction: Direction,
        seed: int,
    ):
        self._make = _MAKERS[name]
        self._domains = domains
        self._unsampled = {**DEFAULTS, **fixed}
        self._seed = seed
        self._record = Record(domains, direction)
        self._starts = Starts(start_from)

    @property
    def study(self) -> optuna.Study:
        """The record of all trials."""
        return self._record.study

    def ask(self, number: int) -> Params:
        """Return the next untried start config, its open keys filled at random, or a proposal."""
        if (start := self._starts.take()) is not None:
            rng = np.random.default_rng([self._seed, number])
            params = sample(self._domains, self._unsampled, rng, start)
            self._record.start(number, params)
            return params
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # of tpe's groups, and of qmc
            sampler = self._make(self._domains, self._seed, number)
        return self._record.ask(number, sampler, self._choose)

    def _choose(self, trial: Trial) -> Params:
        return fill(self._domains, self._unsampled, lambda key: suggest(trial, key, self._domains[key]))

    def prepare(self, count: int) -> bool:
        """Do nothing: a proposal is a trial to Optuna, so none is made ahead."""
        return False

    def report(self, number: int, epoch: int, value: float) -> None:
        """Take in the objective of a running trial after an epoch; finite. A repeated epoch is ignored."""
        assert math.isfinite(value), (number, epoch, value)
        self._record.report(number, epoch, value)

    def tell(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """Take in the end of a running trial.

        Args:
            value: the best objective, for COMPLETE only.
            reason: one line for people, kept as user_attrs["reason"].
        """
        self._record.end(number, outcome, value, reason)

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
        """Enter a trial of an earlier run of the same space. A start config that it agrees with counts as tried.

        Args:
            outcome: how it ended, or None for a trial that continues and will be told about.
            value: as in :meth:`tell`.
            epochs: (epoch, objective) of its reports; values that are not finite are left out.
        """
        history = {epoch: seen for epoch, seen in epochs if math.isfinite(seen)}
        self._starts.discard(params)
        if outcome is None:
            self._record.start(number, params)
            for epoch, seen in history.items():
                self._record.report(number, epoch, seen)
            return
        check_value(number, outcome, value)
        self._record.add(
            frozen_trial(self._domains, number, params, outcome, value=value, history=history, reason=reason)
        )


def suggest(trial: Trial, key: str, domain: Domain) -> Any:
    """Return the value that Optuna's sampler chooses for a key of a trial."""
    if isinstance(domain, Choices):
        return trial.suggest_categorical(key, domain.choices)
    if domain.integer:
        return trial.suggest_int(key, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return min(trial.suggest_float(key, domain.low, domain.high, step=domain.step, log=domain.log), domain.high)


def _seed(seed: int, number: int) -> int:
    """A seed for what Optuna draws for a trial."""
    return int(np.random.default_rng([seed, number]).integers(2**31))


def _distributions(domains: Mapping[str, Domain]) -> dict[str, BaseDistribution]:
    """Those of keys with more than one value, by name, as Optuna orders them."""
    made = {key: domain.distribution() for key, domain in sorted(domains.items())}
    return {key: distribution for key, distribution in made.items() if not distribution.single()}


def _random(domains: Mapping[str, Domain], seed: int, number: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=_seed(seed, number))


def _tpe(domains: Mapping[str, Domain], seed: int, number: int) -> optuna.samplers.TPESampler:
    """Keys of one condition are modelled together, which Optuna calls groups; running trials count as bad ones."""
    group = any(domain.when for domain in domains.values())
    return optuna.samplers.TPESampler(seed=_seed(seed, number), group=group, constant_liar=True)


def _gp(domains: Mapping[str, Domain], seed: int, number: int) -> BaseSampler:
    """What not every trial has is left to TPE, not to chance."""
    return optuna.samplers.GPSampler(
        seed=_seed(seed, number), independent_sampler=_tpe({}, seed, number), warn_independent_sampling=False
    )


def _cmaes(domains: Mapping[str, Domain], seed: int, number: int) -> "CmaEs":
    from search.sampling.cmaes import CmaEs  # imports cmaes

    always = _distributions({key: domain for key, domain in domains.items() if not domain.when})
    numbers = {key: range_ for key, range_ in always.items() if not isinstance(range_, CategoricalDistribution)}
    return CmaEs(numbers, _seed(seed, number), independent_sampler=_tpe({}, seed, number))


def _qmc(domains: Mapping[str, Domain], seed: int, number: int) -> "Qmc":
    from search.sampling.qmc import Qmc

    return Qmc(_distributions(domains), seed, number)


_MAKERS: Mapping[str, Callable[[Mapping[str, Domain], int, int], BaseSampler]] = {
    "random": _random,
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "qmc": _qmc,
}
"""By name, each from the domains, the study's seed and the trial's number."""
