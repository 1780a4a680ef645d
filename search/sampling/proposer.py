"""The policy of a search: which params to try next.

Expected improvement at full length under a model of the learning curves (:mod:`search.sampling.surrogate`), with a
share of random proposals. docs/sampling.md says what else was tried, and what it scored.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from search.sampling.encoding import Cube
from search.sampling.surrogate import CurveModel, expected_improvement
from search.space import Params
from search.space.settings import Direction

NUM_RANDOM = 8
"""Proposals are random until there are so many observations."""
RANDOM_SHARE = 0.1
"""Share of later proposals that are random all the same: what the model is wrong about is found in no other way."""
NUM_CANDIDATES, NUM_BEST, NUM_NEIGHBOURS = 1000, 8, 25
"""The model chooses among random configs, and neighbours of the best trials at two distances."""
STEPS = (0.03, 0.1)
"""These distances, as shares of a range."""
CHUNK = 64
"""Candidates that are looked at together, beside the running trials."""
NUM_RANDOM_TRIES = 20
"""Number of redraws of a random proposal that was tried before."""


class Proposer:
    """Proposes params for trials, and is told how they fare.

    Call :meth:`begin` for every trial, also one that was not proposed here, :meth:`observe` after its epochs,
    :meth:`end` once. Proposals follow from what is known and the generator; the order in which it became known does not
    matter.

    Args:
        cube: the space.
        direction: ``maximize`` or ``minimize``.
        levels: epochs at which the model looks at trials; the last is the full length.
        seed: of the coordinates that inactive keys get.
    """

    def __init__(self, cube: Cube, *, direction: Direction, levels: Collection[int], seed: int):
        self._cube = cube
        self._seed = seed
        self._sign = 1.0 if direction == "maximize" else -1.0
        self._levels = frozenset(levels)
        self._epochs = max(levels)
        self._model = CurveModel(cube.key_of_feature, self._epochs)
        self._rows: dict[int, np.ndarray] = {}
        self._features: dict[int, np.ndarray] = {}
        self._pending: set[int] = set()
        self._at_full: set[int] = set()
        self._tried: Counter[tuple] = Counter()
        self.knowledge = 0
        """Grows with every result that may change proposals."""

    def begin(self, number: int, params: Mapping[str, Any]) -> None:
        """Take in that a trial runs with these params."""
        self._tried[_identity(params)] += 1
        row_K = self._cube.encode(params, np.random.default_rng([self._seed, number, 1]))
        self._rows[number] = row_K
        self._features[number] = self._cube.features(row_K[None])[0]
        self._pending.add(number)

    def observe(self, number: int, epoch: int, value: float) -> None:
        """Take in a trial's objective after an epoch. The model sees it at rungs, as of all trials, and at the end."""
        if epoch in self._levels:
            self.knowledge += 1
            self._model.observe(number, epoch, self._features[number], self._sign * value)
            if epoch == self._epochs:
                self._at_full.add(number)

    def end(self, number: int, value: float | None, *, infeasible: bool) -> None:
        """Take in the end of a trial.

        Args:
            value: the objective of one that ended by itself, perhaps early: it would not have got better.
            infeasible: it did not fit into memory, and counts as the worst there is.
        """
        self.knowledge += 1
        self._pending.discard(number)
        if number not in self._at_full and (infeasible or value is not None):
            score = None if value is None else self._sign * value
            self._model.observe(number, self._epochs, self._features[number], score)

    def was_tried(self, params: Mapping[str, Any]) -> bool:
        """Say whether a trial began with exactly these params."""
        return self._tried[_identity(params)] > 0

    @contextmanager
    def assuming(self, planned: Mapping[int, Params]) -> Iterator[None]:
        """Assume for the time of the block that these trials, by number, have begun."""
        for number, params in planned.items():
            self.begin(number, params)
        try:
            yield
        finally:
            for number, params in planned.items():
                self._pending.remove(number)
                self._tried[_identity(params)] -= 1
                del self._rows[number], self._features[number]

    def propose(self, rng: np.random.Generator) -> Params:
        """Return params of a new trial, unlike those of all before it if that is possible."""
        if len(self._model) >= NUM_RANDOM and rng.random() >= RANDOM_SHARE:
            with _one_thread():
                for params in map(self._cube.decode, self._promising(rng)):
                    if not self.was_tried(params):
                        return params
        for _ in range(NUM_RANDOM_TRIES):
            params = self._cube.sample(rng)
            if not self.was_tried(params):
                break
        return params

    def _promising(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Candidates, (K,) each, the most promising first."""
        known = self._model.condition()
        mean_N, _ = self._model.predict(np.stack([self._features[number] for number in known]))
        best = [known[index] for index in np.argsort(-mean_N, kind="stable")[:NUM_BEST]]
        near = [
            self._cube.neighbours(rng, self._rows[number], NUM_NEIGHBOURS, step) for number in best for step in STEPS
        ]
        rows_CK = np.concatenate([self._cube.random(rng, NUM_CANDIDATES), *near])
        features_CD = self._cube.features(rows_CK)
        mean_C, deviation_C = self._model.predict(features_CD)
        most_C = expected_improvement(mean_C, deviation_C, best=float(mean_N.max()))
        order = np.argsort(-most_C, kind="stable")
        if not self._pending:
            yield from rows_CK[order]
            return
        # Running trials are taken to fulfil the model's expectation, so that parallel proposals spread. Beside many of
        # them that takes the longest of all, and it can only lower what a candidate promises: so it is done for those
        # that may be the best, some at a time, until no other can be.
        self._model.believe(np.stack([self._features[number] for number in sorted(self._pending)]))
        gain_C = np.full(len(order), -np.inf)
        looked = 0
        for _ in order:
            while looked < len(order) and gain_C.max() <= most_C[order[looked]]:
                chunk = order[looked : looked + CHUNK]
                deviation_N = self._model.believed_deviation(features_CD[chunk])
                gain_C[chunk] = expected_improvement(mean_C[chunk], deviation_N, best=float(mean_N.max()))
                looked += len(chunk)
            index = int(np.argmax(gain_C))
            yield rows_CK[index]
            gain_C[index] = -np.inf


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: matrices of a few hundred rows gain nothing from more, which would wait for the cores that
    trials use."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _identity(params: Mapping[str, Any]) -> tuple:
    """Equal for equal params."""
    return tuple(sorted((key, repr(value)) for key, value in params.items()))
