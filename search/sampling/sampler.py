"""The sampler of a search: start configs first, then proposals, each of them recorded.

A value takes one way: :meth:`StudySampler.ask` -> a start config, a proposal made ahead or a new one -> params. The
record (:mod:`search.sampling.record`) is told afterwards. :mod:`search.sampling.named` has Optuna's own samplers; which
one a study uses is chosen in :mod:`search.study.choose`.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna

from search.sampling.ahead import Ahead
from search.sampling.encoding import Cube
from search.sampling.proposer import Proposer
from search.sampling.protocol import Outcome
from search.sampling.record import Record, check_value, frozen_trial
from search.sampling.starts import Starts
from search.space import Domain, Params
from search.space.settings import Direction


class StudySampler:
    """Proposes configs by a model of learning curves. A :class:`search.sampling.protocol.Sampler`.

    The randomness of each proposal comes from (seed, trial number), so a continued study does not repeat the draws of
    its first part.

    :meth:`prepare` makes proposals ahead. Without it, each follows from all that is known when it is asked for, whether
    that was learned or replayed; one that was made ahead may lack the latest results.

    Args:
        domains: the sampled keys, each after the keys that its condition names.
        fixed: keys that have one value in all trials.
        start_from: values of some sampled keys, to be tried first, in this order.
        direction: ``maximize`` or ``minimize``.
        levels: epochs at which the model looks at trials; the last is the full length.
        seed: every draw derives from it.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        *,
        fixed: Mapping[str, Any],
        start_from: Sequence[Params],
        direction: Direction,
        levels: Collection[int],
        seed: int,
    ):
        self._domains = domains
        self._seed = seed
        self._cube = Cube(domains, fixed)
        self._proposer = Proposer(self._cube, direction=direction, levels=levels, seed=seed)
        self._ahead = Ahead(self._proposer, self._rng_of)
        self._record = Record(domains, direction)
        self._starts = Starts(start_from)
        self._next = 0  # the number after the largest seen

    @property
    def study(self) -> optuna.Study:
        """The record of all trials."""
        return self._record.study

    def ask(self, number: int) -> Params:
        """Return the next untried start config, its open keys filled at random, or a proposal."""
        if (start := self._starts.take()) is not None:
            params = self._cube.sample(self._rng_of(number), start)
            self._ahead.clear()  # what was made ahead does not know of this trial
        else:
            params = self._ahead.take(number)
        self._begin(number, params)
        return params

    def prepare(self, count: int) -> bool:
        """Make one of the next ``count`` proposals ahead, if one is missing or older than the latest result.

        Trials are expected to be numbered on from the largest so far.

        Returns:
            Whether there was one to make: False means that ``count`` slots which came free now would find theirs ready.
        """
        return self._ahead.prepare(range(self._next + len(self._starts), self._next + count))

    def report(self, number: int, epoch: int, value: float) -> None:
        """Take in the objective of a running trial after an epoch; finite. A repeated epoch is ignored."""
        assert math.isfinite(value), (number, epoch, value)
        if self._record.report(number, epoch, value):
            self._proposer.observe(number, epoch, value)

    def tell(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """Take in the end of a running trial.

        A pruned trial has no value of its own: Optuna shows its last reported one, and leaves it out of best values.

        Args:
            value: the best objective, for COMPLETE only.
            reason: one line for people, kept as user_attrs["reason"].
        """
        self._record.end(number, outcome, value, reason)
        self._proposer.end(number, value, infeasible=outcome is Outcome.INFEASIBLE)

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
            self._ahead.clear()
            self._begin(number, params)
            for epoch, seen in history.items():
                self.report(number, epoch, seen)
            return
        check_value(number, outcome, value)
        self._next = max(self._next, number + 1)
        self._record.add(
            frozen_trial(self._domains, number, params, outcome, value=value, history=history, reason=reason)
        )
        self._proposer.begin(number, params)
        for epoch, seen in history.items():
            self._proposer.observe(number, epoch, seen)
        self._proposer.end(number, value, infeasible=outcome is Outcome.INFEASIBLE)

    def _begin(self, number: int, params: Mapping[str, Any]) -> None:
        """Tell the record and the model that a trial runs."""
        self._next = max(self._next, number + 1)
        self._record.start(number, params)
        self._proposer.begin(number, params)

    def _rng_of(self, number: int) -> np.random.Generator:
        """The randomness of a trial."""
        return np.random.default_rng([self._seed, number])
