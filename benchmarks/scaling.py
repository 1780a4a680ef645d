"""Benefit of more workers: the time until a search reaches its target, by the number of workers.

    python -m benchmarks.scaling --data DIR --tasks 189873,126026 --seeds 2 --workers 8,64,512

The simulation is that of :mod:`benchmarks.search_efficiency`, and so is the first target: what random search with full
training reaches in the median with 3,640 epochs, 70 trainings. With hundreds of workers that is no task, as the first
draws suffice; so there is a second target, ten times as many trainings. Time is that of the simulated workers: each
epoch lasts as long as LCBench says it did, and proposals cost nothing. The default sizes take about ten minutes of
one core.

docs/scale.md says what the driver has to do meanwhile.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lcbench import EPOCHS, Surrogate
from benchmarks.measure import at_least_one, hardware, versions
from benchmarks.policies import OURS, POLICIES, VARIANTS, Maker
from benchmarks.search_efficiency import PACKAGES, surrogate_and_tasks, target, unknown
from benchmarks.simulation import Run, simulate
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import raise_all
from cellseg.files import write_json

TARGET_BUDGETS = (3640, 36_400)
"""Epochs of the random searches that set the targets."""
LENGTHS_EACH = 4
"""A run ends unfinished when its workers have trained the budget, or if that is more, so many full lengths each."""


@dataclass(frozen=True)
class Reached:
    """Progress of a run to one target."""

    policy: str
    workers: int
    task: str
    seed: int
    target: int
    """Epochs of the random search that sets it."""
    seconds: float | None
    """Of the simulated workers until the target; None if the budget did not suffice."""
    epochs: int | None
    """Trained by all workers until then."""
    trials: int
    """Trials started in the whole run, that is until the hardest target."""


def reached(run: Run, goal: float) -> tuple[float, int] | None:
    """The time and the epochs, of all workers, until a run shows the goal; None if it never does."""
    hits = np.flatnonzero(run.best >= goal)
    return (float(run.seconds[hits[0]]), int(hits[0]) + 1) if len(hits) else None


def summarize(rows: Sequence[Reached]) -> list[dict[str, Any]]:
    """A dict for each policy, target and number of workers, in the order in which they come.

    ``seconds`` and ``epochs`` are medians over tasks and seeds where a run that did not arrive is the slowest (None:
    the middle one did not), ``reached`` the share that did. ``speedup`` is the median, over tasks and seeds, of the
    time with the fewest workers by the time with these; ``efficiency`` is that by the ratio of workers. Pairs in which
    a run did not arrive are left out.
    """
    fewest = min(row.workers for row in rows)
    base = {(row.policy, row.target, row.task, row.seed): row.seconds for row in rows if row.workers == fewest}
    groups: dict[tuple[str, int, int], list[Reached]] = {}
    for row in rows:
        groups.setdefault((row.policy, row.target, row.workers), []).append(row)
    summary = []
    for (policy, goal, workers), group in groups.items():
        ratios = [
            first / row.seconds
            for row in group
            if row.seconds and (first := base[policy, goal, row.task, row.seed]) is not None
        ]
        speedup = statistics.median(ratios) if ratios else None
        summary.append(
            {
                "policy": policy,
                "target": goal,
                "workers": workers,
                "seconds": _median([row.seconds for row in group]),
                "epochs": _median([row.epochs for row in group]),
                "reached": sum(row.seconds is not None for row in group) / len(group),
                "speedup": speedup,
                "efficiency": speedup and speedup * fewest / workers,
            }
        )
    return summary


def _median(values: Sequence[float | None]) -> float | None:
    middle = statistics.median_high([float("inf") if value is None else value for value in values])
    return None if middle == float("inf") else middle


def measure(
    surrogate: Surrogate,
    makers: dict[str, Maker],
    tasks: Sequence[str],
    seeds: int,
    workers: Sequence[int],
    budget: int,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Reached]:
    """Every policy on every task with every seed and number of workers; ``tell`` is given a line about each run."""
    rows = []
    for task in tasks:
        goals = {epochs: target(surrogate, task, epochs) for epochs in TARGET_BUDGETS}
        for name, maker in makers.items():
            for count in workers:
                for seed in range(seeds):
                    run = simulate(
                        maker(surrogate.domains, seed),
                        partial(surrogate.curve, task),
                        count,
                        max(budget, LENGTHS_EACH * EPOCHS * count),
                        goal=max(goals.values()),
                    )
                    for epochs, goal in goals.items():
                        seconds, trained = reached(run, goal) or (None, None)
                        rows.append(Reached(name, count, task, seed, epochs, seconds, trained, run.num_trials))
                    times = " ".join(
                        "-" if row.seconds is None else f"{row.seconds:.0f}" for row in rows[-len(goals) :]
                    )
                    tell(f"{name:24} {task:>7} {count:4} workers, seed {seed}: targets after {times} s")
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of LCBench's surrogate")
    parser.add_argument("--tasks", default="189873,126026", help="OpenML ids, or all")
    parser.add_argument("--seeds", type=at_least_one, default=2, metavar="N")
    parser.add_argument("--workers", default="8,64,512", metavar="A,B", help="numbers of workers")
    parser.add_argument(
        "--budget", type=at_least_one, default=10_000, metavar="EPOCHS", help="least epochs of an unfinished run"
    )
    parser.add_argument("--policies", default=f"{OURS},random+asha(grace 3)", metavar="A,B")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    surrogate, tasks = surrogate_and_tasks(arguments)
    makers = POLICIES | VARIANTS
    policies = arguments.policies.split(",")
    workers = arguments.workers.split(",")
    raise_all(
        unknown("--tasks", tasks, surrogate.tasks)
        + unknown("--policies", policies, makers)
        + [f"--workers: must be integers of at least 1, but got {w}." for w in workers if not w.isdecimal() or w == "0"]
    )
    rows = measure(
        surrogate,
        {name: makers[name] for name in policies},
        tasks,
        arguments.seeds,
        sorted(map(int, workers)),
        arguments.budget,
        tell=say,
    )
    summary = summarize(rows)
    say(f"{'policy':24} {'target':>6} {'workers':>7} {'seconds':>8} {'epochs':>7} reached speedup efficiency")
    for row in summary:
        cells = [
            f"{row['policy']:24} {row['target']:6} {row['workers']:7}",
            f"{'-' if row['seconds'] is None else format(row['seconds'], '.0f'):>8}",
            f"{'-' if row['epochs'] is None else row['epochs']:>7} {row['reached']:7.0%}",
            f"{'-' if row['speedup'] is None else format(row['speedup'], '.1f'):>7}",
            f"{'-' if row['efficiency'] is None else format(row['efficiency'], '.0%'):>10}",
        ]
        say(" ".join(cells))
    if arguments.json:
        settings = {name: getattr(arguments, name) for name in ("seeds", "budget")} | {"tasks": list(tasks)}
        machine = {"versions": versions(PACKAGES), "hardware": hardware()}
        write_json(arguments.json, settings | {"summary": summary, "runs": [vars(row) for row in rows]} | machine)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
