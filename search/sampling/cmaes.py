"""Optuna's CMA-ES without a state of its own."""

from collections.abc import Mapping
from typing import Any

from cmaes import CMA
from optuna import Study
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.trial import FrozenTrial, TrialState


class CmaEs(CmaEsSampler):
    """Optuna's CMA-ES, whose distribution follows from the trials that ended, in the order of their numbers.

    Optuna's keeps the distribution in hidden attributes of trials, which our tables do not hold, and drops results
    that arrive after their generation. Here each so many results make the next generation: none is lost, and a study
    that is continued has the distribution it would have had. Pruned trials count with their last value.

    Args:
        numbers: the ranges that every trial has; all other keys are left to ``independent_sampler``.
        seed: of this proposal.
    """

    def __init__(self, numbers: Mapping[str, BaseDistribution], seed: int, independent_sampler: BaseSampler):
        super().__init__(seed=seed, independent_sampler=independent_sampler, warn_independent_sampling=False)
        self._numbers = dict(numbers)
        self._study: Study

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the ranges that every trial has."""
        return self._numbers

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return values of these ranges, drawn from the distribution."""
        self._study = study
        return super().sample_relative(study, trial, search_space)

    def _get_trials(self, study: Study) -> list[FrozenTrial]:
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [trial for trial in ended if trial.values]

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> CMA:
        places = _SearchSpaceTransform(self._numbers, transform_0_1=True)
        optimizer = self._init_optimizer(places, self._study.direction)
        sign = -1.0 if self._study.direction.name == "MAXIMIZE" else 1.0
        size = optimizer.population_size
        for first in range(0, len(completed_trials) - size + 1, size):
            generation = completed_trials[first : first + size]
            optimizer.tell([(places.transform(trial.params), sign * (trial.value or 0.0)) for trial in generation])
        return optimizer

    def _get_solution_trials(self, trials: list[FrozenTrial], generation: int) -> list[FrozenTrial]:
        return []  # the optimizer was told of all of them
