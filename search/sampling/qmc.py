"""Optuna's quasi-Monte Carlo sampler for spaces with conditions."""

from collections.abc import Mapping

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import QMCSampler
from optuna.trial import FrozenTrial


class Qmc(QMCSampler):
    """Optuna's scrambled Sobol sequence over all keys; a trial's number is its place in the sequence.

    Optuna's takes the keys of the first trial and draws all others at random, and counts its proposals in a hidden
    attribute of the study. Here keys that are inactive in a trial have a coordinate that is not used.

    Args:
        distributions: of every key with more than one value.
        seed: the study's.
        number: the trial's.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int, number: int):
        super().__init__(
            scramble=True, seed=int(np.random.default_rng(seed).integers(2**31)), warn_independent_sampling=False
        )
        self._distributions = dict(distributions)
        self._number = number

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all keys."""
        return self._distributions

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number
