"""Epochs that a search needs on real learning curves: ours against other tools, replayed on fully trained studies.

    python -m benchmarks.real_curves --study benchmarks/curves/pools/quickstart --seeds 40 --workers 2 --json FILE

``--study`` may be given several times. Any study folder of the product serves as a pool, best one that was trained
with ``asha: off``: the pool's trials are the space, and a proposal is answered by the nearest one that was not tried.
A policy's cost is the number of epochs, trained by all workers together, until any trial is within 0.02 of the best
value of the pool, as a share of the epochs of the whole pool.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import hardware, versions
from benchmarks.policies import OURS, POLICIES, SYNE_TUNE_POLICIES, Maker, Ours, RandomSearch, has_syne_tune
from benchmarks.pool import OnPool, Pool, open_pool
from benchmarks.search_efficiency import PACKAGES, unknown
from benchmarks.simulation import Policy, simulate
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError, raise_all
from cellseg.files import write_json

TOLERANCE = 0.02
"""A search has arrived when it is so near to the best value of the pool, in units of the metric."""
SHARES = (0.05, 0.1, 0.2, 0.4)
"""Shares of the whole pool's epochs at which the regret is reported."""
MOMENTS = (30, 60, 120)
"""Epochs after which the best value is reported."""
GRACES = (1, 2, 3, 4)
REAL_POLICIES: dict[str, Maker] = {
    OURS: partial(Ours, grace=None),
    "random": RandomSearch,
    **{f"random+asha(grace {grace})": partial(RandomSearch, grace=grace) for grace in GRACES},
    **{name: make for name, make in POLICIES.items() if name.startswith(("ray ", "optuna "))},
}
"""Those that are compared: ours with the product's own defaults, and what people get elsewhere."""
PEERS: dict[str, Maker] = {name: make for name, make in SYNE_TUNE_POLICIES.items() if "mobster" in name}
"""Those that are compared where Syne Tune is installed."""


@dataclass(frozen=True)
class Replay:
    """A search that was replayed on a pool."""

    policy: str
    study: str
    seed: int
    cost: int | None
    """Epochs until within :data:`TOLERANCE` of the best; None if it never came so near."""
    cost_share: float | None
    """``cost`` over the epochs of the whole pool."""
    regret: Mapping[str, float]
    """The pool's best value less the best so far, by the share of the pool's epochs."""
    value: Mapping[str, float]
    """The best value so far, by epochs."""
    reached: Mapping[str, int]
    """How many of the pool's best quarter came to the end of an epoch after which the policy stops trials."""
    stopped: Mapping[str, int]
    """How many of them were stopped there."""
    mean_distance: float
    """Between a proposal and the entry that answered it."""


def make_policy(make: Maker, pool: Pool, seed: int) -> Policy:
    """Make a policy for the pool's space. Only those that know conditions are told the fixed keys."""
    kind = make.func if isinstance(make, partial) else make
    knows_conditions = isinstance(kind, type) and issubclass(kind, Ours | RandomSearch)
    options: dict[str, Any] = {"fixed": pool.space.fixed} if knows_conditions else {}
    return make(pool.space.domains, seed, epochs=pool.space.epochs, **options)


def replay(policy: str, make: Maker, pool: Pool, seed: int, workers: int) -> Replay:
    """Replay one search, until it has arrived and all moments of the report are over, at most the whole pool."""
    on_pool = OnPool(make_policy(make, pool, seed), pool, seed)
    best_value = float(pool.finals_P.max())
    result = simulate(
        on_pool,
        on_pool.curve_of,
        workers,
        pool.cost,
        goal=best_value - TOLERANCE,
        at_least=max(*MOMENTS, int(max(SHARES) * pool.cost)),
    )
    hits = np.flatnonzero(result.best >= best_value - TOLERANCE)
    cost = int(hits[0]) + 1 if len(hits) else None
    levels = sorted(set(on_pool.stopped.values()))
    quarter = [entry for entry in on_pool.judged if entry in pool.best_quarter]

    def best_after(epochs: int) -> float:
        return float(result.best[min(max(epochs, 1), len(result.best)) - 1])

    return Replay(
        policy=policy,
        study=pool.name,
        seed=seed,
        cost=cost,
        cost_share=None if cost is None else cost / pool.cost,
        regret={f"{share:g}": best_value - best_after(round(share * pool.cost)) for share in SHARES},
        value={str(moment): best_after(moment) for moment in MOMENTS},
        reached={str(level): sum(on_pool.judged[entry] >= level for entry in quarter) for level in levels},
        stopped={str(level): sum(on_pool.stopped.get(entry) == level for entry in quarter) for level in levels},
        mean_distance=statistics.fmean(on_pool.distances),
    )


def summarize(replays: Sequence[Replay]) -> dict[str, dict[str, Any]]:
    """Sum up the replays of each policy over studies and seeds.

    ``median_cost_share`` and ``p90_cost_share`` are None where that run never arrived. ``loss_by_rung`` is the share of
    the best quarter that was stopped, of those that came so far, by epoch; ``first_rung_loss`` is that of the first
    epoch after which the policy stops any trial, 0 for one that stops none.
    """
    summary = {}
    for name in dict.fromkeys(run.policy for run in replays):
        runs = [run for run in replays if run.policy == name]
        shares = sorted(float("inf") if run.cost_share is None else run.cost_share for run in runs)
        levels = sorted({int(level) for run in runs for level in run.stopped})
        loss = {str(level): _loss(runs, str(level)) for level in levels}
        summary[name] = {
            "median_cost_share": _finite(_quantile(shares, 0.5)),
            "p90_cost_share": _finite(_quantile(shares, 0.9)),
            "first_rung_loss": next(iter(loss.values()), 0.0),
            "loss_by_rung": loss,
            "reached": sum(share < float("inf") for share in shares) / len(shares),
            "regret": _means(run.regret for run in runs),
            "value": _means(run.value for run in runs),
            "mean_distance": statistics.fmean(run.mean_distance for run in runs),
        }
    return summary


def _loss(runs: Sequence[Replay], level: str) -> float:
    reached = sum(run.reached.get(level, 0) for run in runs)
    return sum(run.stopped.get(level, 0) for run in runs) / reached if reached else 0.0


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed: one of theirs, so infinity stays itself."""
    return ordered[max(0, int(np.ceil(share * len(ordered))) - 1)]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _means(mappings: Iterable[Mapping[str, float]]) -> dict[str, float]:
    known = list(mappings)
    return {key: statistics.fmean(mapping[key] for mapping in known) for key in known[0]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_curves", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--study", type=Path, action="append", required=True, metavar="DIR", help="folder of a study; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=40, metavar="N")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="W")
    parser.add_argument("--policies", metavar="A;B", help="separated by semicolons; default: all that are installed")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    installed = REAL_POLICIES | (PEERS if has_syne_tune() else {})
    names = arguments.policies.split(";") if arguments.policies else list(installed)
    raise_all(unknown("--policies", names, installed))
    if arguments.seeds < 1 or arguments.workers < 1:
        raise UserError(
            f"--seeds, --workers: must be at least 1, but got {arguments.seeds} and {arguments.workers}. Raise them."
        )
    pools = [open_pool(folder) for folder in arguments.study]
    for pool in pools:
        left_out = ", ".join(f"{count} {reason}" for reason, count in pool.left_out.items() if count)
        say(
            f"{pool.name}: {len(pool.curves)} configs of {pool.space.epochs} epochs, best {pool.finals_P.max():.4f}, "
            f"median {np.median(pool.finals_P):.4f}; left out: {left_out or 'none'}"
        )
    replays: list[Replay] = []
    for name in names:
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        replays += [replay(name, installed[name], pool, seed, arguments.workers) for pool in pools for seed in seeds]
        say(describe(name, summarize(replays)[name]))
    if arguments.json:
        record = summarize(replays) | {
            "_settings": {name: getattr(arguments, name) for name in ("seeds", "first_seed", "workers")}
            | {"tolerance": TOLERANCE},
            "_studies": {
                pool.name: {"configs": len(pool.curves), "best": float(pool.finals_P.max()), "left_out": pool.left_out}
                for pool in pools
            },
            "_machine": {"versions": versions(PACKAGES), "hardware": hardware()},
            "_runs": [vars(run) for run in replays],
        }
        write_json(arguments.json, record)
    return EXIT_OK


def describe(name: str, summary: Mapping[str, Any]) -> str:
    """A policy's line."""
    median, p90 = (
        "    -" if summary[key] is None else f"{summary[key]:5.1%}" for key in ("median_cost_share", "p90_cost_share")
    )
    values = " ".join(f"{value:.3f}" for value in summary["value"].values())
    regrets = " ".join(f"{value:.3f}" for value in summary["regret"].values())
    losses = " ".join(f"{level}: {loss:.0%}" for level, loss in summary["loss_by_rung"].items())
    return (
        f"{name:30} cost {median} p90 {p90}  value after {'/'.join(map(str, MOMENTS))} {values}  "
        f"regret at {'/'.join(f'{share:.0%}' for share in SHARES)} {regrets}  best quarter lost {losses or 'none'}"
    )


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
