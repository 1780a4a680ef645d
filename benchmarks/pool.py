"""A fully trained study as a search space whose every config is known."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lcbench import Curve
from benchmarks.simulation import Policy, Resume
from cellseg.config import gain
from cellseg.errors import UserError
from search.sampling.encoding import Cube
from search.space import Space
from search.storage.store import StudyStore
from search.storage.tables import EpochRow
from search.study.load import experiment_from_json
from search.study.study import tie_breaker

LEAST_TRIALS = 8
"""A pool with fewer has no best quarter to speak of."""


@dataclass(frozen=True)
class Pool:
    """The trials of a study that were trained to their full length, each config once."""

    name: str
    space: Space
    """The study's space."""
    params: tuple[Mapping[str, Any], ...]
    curves: tuple[Curve, ...]
    """The curve of each; larger values are better."""
    left_out: Mapping[str, int]
    """Trials that are not among them, by reason."""

    @property
    def cost(self) -> int:
        """Epochs of training the whole pool."""
        return len(self.curves) * self.space.epochs

    @property
    def finals_P(self) -> np.ndarray:
        """(P,) the best value of each curve."""
        return np.array([curve.accuracy.max() for curve in self.curves])

    @property
    def best_quarter(self) -> frozenset[int]:
        """The entries with the best values, a quarter of them, rounded up."""
        order = np.argsort(-self.finals_P, kind="stable")
        return frozenset(order[: -(-len(order) // 4)].tolist())


def open_pool(folder: Path) -> Pool:
    """Read a study folder.

    Raises:
        UserError: no study, an ablation, or too few trials that were trained to the end.
    """
    store = StudyStore.open(folder)
    space = experiment_from_json(store.study["space"], f"{folder}/study.json")
    if not isinstance(space, Space):
        raise UserError(f"--study: must be a search, but got the ablation {folder}. Name a study of a space.")
    epochs = store.epochs_by_trial()
    left_out = dict.fromkeys(("pruned", "failed or unfinished", "repeats of a config"), 0)
    params: list[Mapping[str, Any]] = []
    curves: list[Curve] = []
    for row in store.trials():
        values = json.loads(row.params)
        curve = _curve(epochs.get(row.number, []), space)
        if row.state == "PRUNED":
            left_out["pruned"] += 1
        elif row.state != "COMPLETE" or curve is None:
            left_out["failed or unfinished"] += 1
        elif values in params:
            left_out["repeats of a config"] += 1
        else:
            params.append(values)
            curves.append(curve)
    if len(params) < LEAST_TRIALS:
        law = f"--study: must have at least {LEAST_TRIALS} different configs that were trained to the end"
        raise UserError(f"{law}, but got {len(params)} in {folder}. Train one with asha: off.")
    return Pool(folder.name, space, tuple(params), tuple(curves), left_out)


def _curve(rows: Sequence[EpochRow], space: Space) -> Curve | None:
    """The curve of a trial; None unless it has a value after every epoch up to the full length."""
    values = [row.metrics.get(space.metric) for row in rows]
    known = [gain(space.metric, value) for value in values if value is not None and math.isfinite(value)]
    if [row.epoch for row in rows] != list(range(1, space.epochs + 1)) or len(known) < space.epochs:
        return None
    return Curve(
        accuracy=np.array(known),
        cross_entropy=np.array([tie_breaker(row.metrics) for row in rows]),
        seconds=np.array([max(row.seconds, 1e-3) for row in rows]),
    )


class OnPool:
    """A policy whose proposals are answered by the nearest untried entries of a pool.

    Near is what the product's model calls near: a full range is as far as two choices from each other, an inactive key
    counts nothing. Policies that can be told (with a method ``adopt``) learn the params that the entry really has; the
    others take the curve for that of their own proposal. Of equally near entries one is drawn.

    Args:
        seed: of the draws.
        trials: the most trials. None: the whole pool.
    """

    def __init__(self, policy: Policy, pool: Pool, seed: int, trials: int | None = None):
        self._policy, self._pool = policy, pool
        self._trials = len(pool.curves) if trials is None else trials
        self._cube = Cube(pool.space.domains, pool.space.fixed)
        self._rng = np.random.default_rng([seed, 1])
        rows_PK = np.stack([self._cube.encode(params, self._rng) for params in pool.params])
        self._features_PD = self._cube.features(rows_PK)
        self._untried = np.ones(len(pool.params), dtype=bool)
        self._entries: list[int] = []  # by trial
        self.distances: list[float] = []
        """Between each proposal and its entry."""
        self.judged: dict[int, int] = {}
        """Entry -> the last epoch that it reached."""
        self.stopped: dict[int, int] = {}
        """Entry -> the epoch after which it was stopped, unless it was resumed."""

    def ask(self, number: int) -> Mapping[str, Any] | Resume:
        """Return the entry of a new trial as ``{"entry": index}``; empty if all that may be were tried."""
        if len(self._entries) >= min(self._trials, len(self._pool.curves)):
            return {}
        answer = self._policy.ask(number)
        if isinstance(answer, Resume):
            self.stopped.pop(self._entries[answer.number], None)
            return answer
        entry = self._nearest(answer)
        self._entries.append(entry)
        self._untried[entry] = False
        if (adopt := getattr(self._policy, "adopt", None)) is not None:
            adopt(number, self._pool.params[entry])
        return {"entry": entry}

    def curve_of(self, answer: Mapping[str, Any]) -> Curve | None:
        """Return the curve of an entry that :meth:`ask` gave."""
        return self._pool.curves[answer["entry"]] if answer else None

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        """Pass a report on, and remember what was stopped."""
        goes_on = self._policy.report(number, epoch, value, loss)
        entry = self._entries[number]
        self.judged[entry] = epoch
        if not goes_on and epoch < self._pool.space.epochs:
            self.stopped[entry] = epoch
        return goes_on

    def _nearest(self, params: Mapping[str, Any]) -> int:
        known = {key: value for key, value in params.items() if key in self._pool.space.domains}
        row_K = self._cube.encode(known, self._rng)
        distances_P = np.linalg.norm(self._features_PD - self._cube.features(row_K[None]), axis=1)
        distances_P[~self._untried] = np.inf
        nearest = np.flatnonzero(distances_P <= distances_P.min() + 1e-9)
        entry = int(self._rng.choice(nearest))
        self.distances.append(float(distances_P[entry]))
        return entry
