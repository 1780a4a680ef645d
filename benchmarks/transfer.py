"""Epochs that a search needs with start configs from a search on other data, and without.

    python -m benchmarks.transfer --data DIR --tasks 126025,167083,167104 --seeds 3 --top 5 --json transfer.json

DIR holds LCBench's surrogate. Each task starts from the ``top`` best configs, by their best value, of a search of
``earlier`` epochs on the task before it in the list. Costs are those of :mod:`benchmarks.search_efficiency`.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lcbench import Surrogate
from benchmarks.measure import hardware, versions
from benchmarks.policies import Ours
from benchmarks.search_efficiency import PACKAGES, median_cost, surrogate_and_tasks, target, unknown
from benchmarks.simulation import simulate
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import raise_all
from cellseg.files import write_json
from search.space import Params


class Remembered(Ours):
    """A policy that remembers the best value of each of its trials."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self._asked: dict[int, Params] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        params = self._asked[number] = dict(super().ask(number))
        return params

    def top(self, count: int) -> list[Params]:
        """The params of its best trials, the best first."""
        ranked = sorted(self._best, key=lambda number: -self._best[number])
        return [self._asked[number] for number in ranked[:count]]


def best_of_search(surrogate: Surrogate, task: str, seed: int, workers: int, budget: int, top: int) -> list[Params]:
    """Search on a task for so many epochs; return the best params."""
    policy = Remembered(surrogate.domains, seed)
    simulate(policy, lambda params: surrogate.curve(task, params), workers, budget)
    return policy.top(top)


def cost(
    surrogate: Surrogate, task: str, seed: int, workers: int, budget: int, goal: float, starts: Sequence[Params]
) -> int | None:
    """Epochs until a trial has shown the goal, or None if the budget did not suffice."""
    policy = Ours(surrogate.domains, seed, start_from=starts)
    result = simulate(policy, lambda params: surrogate.curve(task, params), workers, budget, goal=goal)
    return len(result.best) if np.max(result.best) >= goal else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of LCBench's surrogate")
    parser.add_argument("--tasks", default="126025,167083,167104,167181,168329,168868,189354,34539")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--workers", type=int, default=8, metavar="W")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="start configs")
    parser.add_argument("--earlier", type=int, default=600, metavar="EPOCHS", help="of the search on other data")
    parser.add_argument("--budget", type=int, default=3640, metavar="EPOCHS")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    surrogate, tasks = surrogate_and_tasks(arguments)
    raise_all(unknown("--tasks", tasks, surrogate.tasks))
    runs: list[dict[str, Any]] = []
    for before, task in zip((tasks[-1], *tasks), tasks, strict=False):
        goal = target(surrogate, task, arguments.budget)
        for seed in range(arguments.seeds):
            # Another seed than that of the search itself, or both would begin alike.
            earlier = best_of_search(
                surrogate, before, 1000 + seed, arguments.workers, arguments.earlier, arguments.top
            )
            without, with_them = (
                cost(surrogate, task, seed, arguments.workers, arguments.budget, goal, starts)
                for starts in ([], earlier)
            )
            runs.append({"task": task, "from": before, "seed": seed, "without": without, "with": with_them})
            say(f"{before:>7} -> {task:>7}  seed {seed}: {without or '-'} epochs without, {with_them or '-'} with")
    medians = {name: median_cost([run[name] for run in runs]) for name in ("without", "with")}
    ratios = [run["with"] / run["without"] for run in runs if run["with"] and run["without"]]
    share = statistics.median(ratios) if ratios else None
    say(f"median epochs: {medians['without']} without, {medians['with']} with; median ratio {share}")
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("workers", "top", "earlier", "budget")}
        machine = {"versions": versions(PACKAGES), "hardware": hardware()}
        write_json(arguments.json, settings | {"median_cost": medians, "ratio": share, "runs": runs} | machine)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
