"""Epochs that a search needs: ours against other tools, on published learning curves.

    python -m benchmarks.search_efficiency --data DIR --tasks 167168,189873 --seeds 5 --workers 8 --budget 3640

DIR holds LCBench's surrogate (``model.onnx``, ``encoding.json``, ``config_space.json``). A policy's cost is the number
of epochs, trained by all workers together, until any trial has shown the target: the best value that random search with
full training reaches in the median with the whole budget.

Syne Tune's schedulers are compared too where ``syne-tune[gpsearchers]==0.14.2`` is installed, which wants an
environment of its own with numpy 1.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lcbench import EPOCHS, Surrogate
from benchmarks.measure import hardware, versions
from benchmarks.policies import OURS, POLICIES, SYNE_TUNE_POLICIES, VARIANTS, has_syne_tune
from benchmarks.simulation import simulate
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError, raise_all
from cellseg.files import write_json

PACKAGES = ("optuna", "ray", "torch", "numpy", "scipy", "onnxruntime")
"""Packages that affect the figures."""
TARGET_POOL = 4000
"""Random configs that a task's target is estimated from."""


@dataclass(frozen=True)
class Outcome:
    """A run of a policy on a task with a seed."""

    policy: str
    task: str
    seed: int
    cost: int | None
    """Epochs until the target, or None if the budget did not suffice."""
    regret: float | None
    """Target less the best value at the end; negative is better than the target. In % of accuracy. None if the run was
    not to go on to the end."""
    seconds: float
    """Of the simulated workers until the target (or the end of the budget)."""
    trials: int
    real_seconds: float
    """That the whole simulation took here."""


def target(surrogate: Surrogate, task: str, budget: int, pool: int = TARGET_POOL) -> float:
    """The median of the best of ``budget / EPOCHS`` random configs, each judged by the best epoch of its curve.

    The median of the maximum of n draws is the quantile 0.5^(1/n) of one draw.
    """
    rng = np.random.default_rng(20_220_101)
    draws = ({name: domain.sample(rng) for name, domain in surrogate.domains.items()} for _ in range(pool))
    best = [surrogate.curve(task, params).accuracy.max() for params in draws]
    return float(np.quantile(best, 0.5 ** (EPOCHS / budget)))


def run(
    surrogate: Surrogate,
    policy: str,
    task: str,
    seed: int,
    workers: int,
    budget: int,
    goal: float,
    to_target: bool = False,
) -> Outcome:
    """Simulate one search.

    Args:
        to_target: end it at the target.
    """
    started = time.perf_counter()
    result = simulate(
        (POLICIES | VARIANTS | SYNE_TUNE_POLICIES)[policy](surrogate.domains, seed),
        lambda params: surrogate.curve(task, params),
        workers,
        budget,
        goal=goal if to_target else np.inf,
    )
    hits = np.flatnonzero(result.best >= goal)
    last = int(hits[0]) if len(hits) else budget - 1
    return Outcome(
        policy=policy,
        task=task,
        seed=seed,
        cost=last + 1 if len(hits) else None,
        regret=None if to_target else goal - float(result.best[-1]),
        seconds=float(result.seconds[last]),
        trials=result.num_trials,
        real_seconds=time.perf_counter() - started,
    )


def median_cost(costs: Sequence[int | None]) -> float | None:
    """The median, where a run that never arrived is later than all others; None if the middle one did not arrive."""
    middle = statistics.median_high([float("inf") if cost is None else cost for cost in costs])
    return None if middle == float("inf") else middle


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """``median_cost``, ``reached`` and ``median_regret`` of each policy over tasks and seeds, and ours as ratios."""
    of_policy = {name: [o for o in outcomes if o.policy == name] for name in dict.fromkeys(o.policy for o in outcomes)}
    costs = {name: median_cost([o.cost for o in runs]) for name, runs in of_policy.items()}
    regrets = {name: [o.regret for o in runs if o.regret is not None] for name, runs in of_policy.items()}
    ours = costs.get(OURS)
    return {
        "median_cost": costs,
        "reached": {name: sum(o.cost is not None for o in runs) / len(runs) for name, runs in of_policy.items()},
        "median_regret": {name: statistics.median(values) if values else None for name, values in regrets.items()},
        "ratios": {f"ours / {name}": ours / cost for name, cost in costs.items() if ours and cost and name != OURS},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_efficiency", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of LCBench's surrogate")
    parser.add_argument("--tasks", default="167168,189873,189906,126026", help="OpenML ids, or all")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--workers", type=int, default=8, metavar="W")
    parser.add_argument(
        "--budget", type=int, default=3640, metavar="EPOCHS", help="epochs trained by all workers together"
    )
    parser.add_argument("--policies", metavar="A,B", help="default: all that are installed")
    parser.add_argument("--to-target", action="store_true", help="end a run at the target; its regret stays unknown")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    surrogate, tasks = surrogate_and_tasks(arguments)
    installed = POLICIES | (SYNE_TUNE_POLICIES if has_syne_tune() else {})
    policies = arguments.policies.split(",") if arguments.policies else list(installed)
    raise_all(unknown("--tasks", tasks, surrogate.tasks) + unknown("--policies", policies, installed | VARIANTS))
    if not (arguments.policies or has_syne_tune()):
        say("Syne Tune 0.14 is not installed: its policies are left out.")
    goals = {task: target(surrogate, task, arguments.budget) for task in tasks}
    outcomes = []
    for policy in policies:
        for task in tasks:
            runs = [
                run(
                    surrogate,
                    policy,
                    task,
                    seed,
                    arguments.workers,
                    arguments.budget,
                    goals[task],
                    to_target=arguments.to_target,
                )
                for seed in range(arguments.seeds)
            ]
            outcomes += runs
            say(f"{policy:32} {task:>7}  epochs {' '.join('-' if o.cost is None else str(o.cost) for o in runs)}")
    summary = summarize(outcomes)
    for policy in policies:
        cost, regret = summary["median_cost"][policy], summary["median_regret"][policy]
        say(
            f"{policy:32} median {'-' if cost is None else f'{cost:.0f}':>5} epochs, "
            f"reached {summary['reached'][policy]:.0%}, regret {'-' if regret is None else f'{regret:+.2f}'}"
        )
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("seeds", "workers", "budget", "to_target")}
        machine = {"versions": versions(_packages()), "hardware": hardware()}
        record = settings | {"tasks": list(tasks), "targets": goals} | summary | machine
        write_json(arguments.json, record | {"runs": [vars(o) for o in outcomes]})
    return EXIT_OK


def surrogate_and_tasks(arguments: argparse.Namespace) -> tuple[Surrogate, tuple[str, ...]]:
    """Return the surrogate and tasks of ``--data`` and ``--tasks``; silences Optuna."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    surrogate = open_surrogate(arguments.data)
    return surrogate, surrogate.tasks if arguments.tasks == "all" else tuple(arguments.tasks.split(","))


def open_surrogate(folder: Path) -> Surrogate:
    """LCBench's surrogate; raises UserError if it is not in the folder."""
    if not (folder / "model.onnx").is_file():
        raise UserError(f"--data: must hold LCBench's surrogate, but got no model.onnx in {folder}.")
    return Surrogate(folder)


def unknown(option: str, names: Iterable[str], known: Collection[str]) -> list[str]:
    """A complaint about each name that is not known."""
    return [f"{option}: must be among {', '.join(known)}, but got {name}." for name in names if name not in known]


def _packages() -> tuple[str, ...]:
    return (*PACKAGES, "syne-tune") if has_syne_tune() else PACKAGES


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
