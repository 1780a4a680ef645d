"""Proposals made before they are asked for, so that a free slot does not wait for one."""

from collections.abc import Callable, Sequence

import numpy as np

from search.sampling.proposer import Proposer
from search.space import Params


class Ahead:
    """The proposals for the next trials, as far as there was time to make them.

    They are what asking for one after the other would have given when they were made. A result that comes in
    outdates them: they are made anew, one with each :meth:`prepare`, but until then the outdated ones serve.

    Args:
        rng_of: the randomness of a trial, by its number.
    """

    def __init__(self, proposer: Proposer, rng_of: Callable[[int], np.random.Generator]):
        self._proposer = proposer
        self._rng_of = rng_of
        self._made: dict[int, tuple[Params, int]] = {}  # number -> params, what was known then

    def prepare(self, numbers: Sequence[int]) -> bool:
        """Make the first proposal for these trials that is missing or outdated; return whether there was one.

        Args:
            numbers: the next trials, in the order in which they will be asked for.
        """
        planned: dict[int, Params] = {}
        for number in numbers:
            params, knowledge = self._made.get(number, ({}, -1))
            if knowledge != self._proposer.knowledge:
                with self._proposer.assuming(planned):
                    params = self._proposer.propose(self._rng_of(number))
                self._made[number] = params, self._proposer.knowledge
                return True
            planned[number] = params
        return False

    def take(self, number: int) -> Params:
        """Return the proposal for a trial that begins now: the one made ahead, or a new one."""
        if number in self._made:
            params, _ = self._made.pop(number)
            if not self._proposer.was_tried(params):
                return params
        self.clear()  # the others do not know of this one
        return self._proposer.propose(self._rng_of(number))

    def clear(self) -> None:
        """Forget all: a trial begins that they do not know of."""
        self._made.clear()
