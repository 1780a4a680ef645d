"""What one proposal costs at 100, 1,000 and 10,000 finished trials: ``python -m benchmarks.proposal``."""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.files import write_json
from search.sampler import Outcome, StudySampler
from search.space import AshaSettings, Choices, Domain, Range, Space

EPOCHS = 54


def domains() -> dict[str, Domain]:
    """Fifteen parameters: five numbers, five on a logarithmic scale, five lists, one of which switches another key."""
    numbers: dict[str, Domain] = {f"number{i}": Range(low=0.0, high=1.0) for i in range(5)}
    scales: dict[str, Domain] = {f"scale{i}": Range(low=1e-5, high=1e-1, log=True) for i in range(4)}
    lists: dict[str, Domain] = {f"list{i}": Choices(choices=("a", "b", "c")) for i in range(5)}
    switched: dict[str, Domain] = {"scale4": Range(low=1e-5, high=1e-1, log=True, when={"list0": ("a", "b")})}
    return numbers | scales | lists | switched


def finished(trials: int, seed: int = 0) -> StudySampler:
    """A sampler that knows so many ended trials, stopped as ASHA would: one in three goes on at each rung."""
    space = Space(
        metric="segm/AP50", trials=1, epochs=EPOCHS, asha=AshaSettings(grace=2, reduction=3), domains=domains()
    )
    sampler = StudySampler(space, seed)
    rng = np.random.default_rng(seed)
    rungs = (*space.make_asha().rungs, EPOCHS)
    for number in range(trials):
        reached = min(int(rng.geometric(2 / 3)), len(rungs))
        history = [(epoch, float(rng.random())) for epoch in rungs[:reached]]
        complete = reached == len(rungs)
        sampler.replay(
            number,
            space.sample(rng),
            Outcome.COMPLETE if complete else Outcome.PRUNED,
            value=history[-1][1] if complete else None,
            epochs=history,
        )
    return sampler


def seconds_per_proposal(trials: int, proposals: int) -> list[float]:
    """Time of each of the next proposals, which are made side by side: none ends."""
    sampler = finished(trials)
    times = []
    for number in range(trials, trials + proposals):
        started = time.perf_counter()
        sampler.ask(number)
        times.append(time.perf_counter() - started)
    return times


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proposal", description=__doc__)
    parser.add_argument("--trials", default="100,1000,10000", help="finished trials, several by commas")
    parser.add_argument("--proposals", type=int, default=20, metavar="N", help="measured at each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    times = {}
    for trials in map(int, arguments.trials.split(",")):
        times[trials] = seconds_per_proposal(trials, arguments.proposals)
        median, most = statistics.median(times[trials]), max(times[trials])
        say(f"{trials:6} finished trials: median {1000 * median:.0f} ms, most {1000 * most:.0f} ms")
    if arguments.json:
        write_json(arguments.json, {"seconds": {str(trials): value for trials, value in times.items()}})
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
