"""What judges best early: kinds of rungs under random proposals, replayed on fully trained studies.

    python -m benchmarks.rungs --study benchmarks/curves/pools/quickstart --seeds 200

Beside the figures of :mod:`benchmarks.real_curves` it tells what a search of eight trials ends with, and what that
costs; and how well each epoch's values rank trials as their final ones do.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from benchmarks.policies import Domains, Maker, RandomSearch
from benchmarks.pool import OnPool, Pool, open_pool
from benchmarks.real_curves import describe, make_policy, replay, summarize
from benchmarks.simulation import simulate
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.files import write_json
from search.space.settings import rung_epochs

TRIALS = 8
"""Of a small search."""


@dataclass(frozen=True)
class Arrivals:
    """The trials at a rung so far; the last is the one to be judged."""

    values_N: np.ndarray
    """(N,) best value of each until then, larger is better."""
    losses_N: np.ndarray
    """(N,) validation loss of each."""


Ahead = Callable[[Arrivals], int]
"""Counts the trials that are ahead of the last."""


def by_value(arrivals: Arrivals, tie: float = 0.0) -> int:
    """Count those with a larger value.

    Args:
        tie: a value must be larger by this share of the standard deviation of all.
    """
    margin = tie * float(arrivals.values_N.std())
    return int((arrivals.values_N > arrivals.values_N[-1] + margin).sum())


def by_loss(arrivals: Arrivals) -> int:
    """Count those with a smaller validation loss."""
    return int((arrivals.losses_N < arrivals.losses_N[-1]).sum())


def by_both(arrivals: Arrivals) -> int:
    """Count those of better rank, where the value's rank counts twice as much as the loss's."""
    ranks_N = 2 * rankdata(-arrivals.values_N) + rankdata(arrivals.losses_N)
    return int((ranks_N < ranks_N[-1]).sum())


class Judged(RandomSearch):
    """Random search whose trials are stopped at rungs.

    Args:
        first: reduction at the first rung. None: as at the others.
        wait: so many trials come to a rung before any is stopped there.
        ahead: says who is better.
    """

    def __init__(
        self,
        domains: Domains,
        seed: int,
        grace: int = 1,
        reduction: int = 3,
        epochs: int = 1,
        fixed: Mapping[str, Any] = MappingProxyType({}),
        first: int | None = None,
        wait: int = 1,
        ahead: Ahead = by_value,
    ):
        super().__init__(domains, seed, epochs=epochs, fixed=fixed)
        rungs = rung_epochs(grace, reduction, epochs)
        self._reduction = {epoch: first if first and epoch == rungs[0] else reduction for epoch in rungs}
        self._wait, self._ahead = wait, ahead
        self._seen: dict[int, list[tuple[float, float]]] = {epoch: [] for epoch in rungs}
        self._best: dict[int, float] = {}

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        self._best[number] = max(value, self._best.get(number, value))
        if epoch not in self._seen:
            return True
        seen = self._seen[epoch]
        seen.append((self._best[number], loss))
        if len(seen) < self._wait:
            return True
        values_N, losses_N = np.array(seen).T
        return self._ahead(Arrivals(values_N, losses_N)) < len(seen) / self._reduction[epoch]


JUDGES: dict[str, Maker] = {
    "never": RandomSearch,
    **{f"grace {grace}": partial(Judged, grace=grace) for grace in (1, 2, 3, 4)},
    **{f"grace {grace}, reduction 2": partial(Judged, grace=grace, reduction=2) for grace in (1, 2)},
    "grace 2, reduction 4": partial(Judged, grace=2, reduction=4),
    **{f"grace {grace}, first rung halves": partial(Judged, grace=grace, first=2) for grace in (1, 2)},
    **{f"grace 1, from {wait} results": partial(Judged, wait=wait) for wait in (4, 8)},
    "grace 2, from 5 results": partial(Judged, grace=2, wait=5),
    **{
        f"grace {grace}, near ties pass": partial(Judged, grace=grace, ahead=partial(by_value, tie=0.25))
        for grace in (1, 2)
    },
    "grace 1, by validation loss": partial(Judged, ahead=by_loss),
    "grace 2, by validation loss": partial(Judged, grace=2, ahead=by_loss),
    **{f"grace {grace}, by value and loss": partial(Judged, grace=grace, ahead=by_both) for grace in (1, 2)},
}
"""Near ties: within a quarter of the standard deviation of the values at the rung."""


def small_search(make: Maker, pool: Pool, seed: int, workers: int) -> tuple[float, int]:
    """Replay a search of :data:`TRIALS` trials; return its best value and the epochs that it cost."""
    on_pool = OnPool(make_policy(make, pool, seed), pool, seed, trials=TRIALS)
    result = simulate(on_pool, on_pool.curve_of, workers, pool.cost)
    return float(result.best[-1]), len(result.best)


def rank_correlations(pool: Pool) -> dict[str, list[float]]:
    """Return Spearman's correlation of each epoch's best value so far, and of its loss, with the final value."""
    values_PE = np.maximum.accumulate(np.stack([curve.accuracy for curve in pool.curves]), axis=1)
    losses_PE = np.stack([curve.cross_entropy for curve in pool.curves])
    return {
        name: [float(spearmanr(column_P, values_PE[:, -1]).statistic) for column_P in table_PE.T]
        for name, table_PE in (("value", values_PE), ("loss", -losses_PE))
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rungs", description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, action="append", required=True, metavar="DIR", help="repeatable")
    parser.add_argument("--seeds", type=int, default=200, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="W")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    pools = [open_pool(folder) for folder in arguments.study]
    record: dict[str, Any] = {"correlations": {pool.name: rank_correlations(pool) for pool in pools}, "judges": {}}
    for pool in pools:
        for name, correlations in record["correlations"][pool.name].items():
            say(f"{pool.name}: rank correlation of the {name} {' '.join(f'{value:.2f}' for value in correlations)}")
    for name, make in JUDGES.items():
        pairs = [(pool, seed) for pool in pools for seed in range(arguments.seeds)]
        summary = summarize([replay(name, make, pool, seed, arguments.workers) for pool, seed in pairs])[name]
        small = np.array([small_search(make, pool, seed, arguments.workers) for pool, seed in pairs])
        summary["small"] = {
            "value": float(small[:, 0].mean()),
            "p10": float(np.quantile(small[:, 0], 0.1)),
            "epochs": float(small[:, 1].mean()),
        }
        record["judges"][name] = summary
        few = "eight trials {value:.3f} (p10 {p10:.3f}) in {epochs:.0f} epochs".format(**summary["small"])
        say(f"{describe(name, summary)}  {few}")
    if arguments.json:
        write_json(arguments.json, record)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
