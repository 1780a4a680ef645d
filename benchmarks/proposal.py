"""Time of the driver for each trial and epoch, by the number of finished trials.

    python -m benchmarks.proposal --trials 100,1000,10000 --json proposal.json

- ``proposal``: making one, in a space of 15 parameters, with all its predecessors running.
- ``start``, ``report``, ``end``: the bookkeeping of :class:`search.study.study.Study` for a new trial (with a
  proposal, in the space that the product comes with), for an epoch, and for a trial's end; what goes into the tables
  waits.
- ``write``: writing the tables after one such event.

    python -m benchmarks.proposal --sampler tpe --proposals 5

Only ``proposal``, by one of Optuna's samplers, in processor time.

    python -m benchmarks.proposal --load 1000 --trials 10000

- ``load``: the processor time of the driver per second of a search on so many GPUs, with epochs of 60 s and 10 epochs
  per trial on average, after so many ended trials; see :mod:`benchmarks.driver_load`. At 100 % slots begin to wait.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from benchmarks.driver_load import EPOCH_COLUMNS, SPACE, make_report, measure_load, num_levels
from benchmarks.measure import format_seconds, hardware, versions
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.files import write_json
from search.sampling.protocol import Outcome, Sampler
from search.space import AshaSettings, Choices, Domain, Range, Space, load_space
from search.space.settings import SamplerName
from search.study.choose import make_asha, make_sampler

if TYPE_CHECKING:
    from search.study.study import Study

EPOCHS = 54
PACKAGES = ("optuna", "torch", "numpy", "scipy", "pyarrow")


def domains() -> dict[str, Domain]:
    """Fifteen parameters: five numbers, five on a logarithmic scale, five lists, one of which switches another key."""
    numbers: dict[str, Domain] = {f"number{i}": Range(low=0.0, high=1.0) for i in range(5)}
    scales: dict[str, Domain] = {f"scale{i}": Range(low=1e-5, high=1e-1, log=True) for i in range(4)}
    lists: dict[str, Domain] = {f"list{i}": Choices(choices=("a", "b", "c")) for i in range(5)}
    switched: dict[str, Domain] = {"scale4": Range(low=1e-5, high=1e-1, log=True, when={"list0": ("a", "b")})}
    return numbers | scales | lists | switched


def finished(trials: int, seed: int = 0, sampler_name: SamplerName = "auto") -> Sampler:
    """A sampler that knows so many ended trials, stopped as ASHA would: one in three goes on at each rung."""
    space = Space(
        metric="segm/AP50",
        trials=1,
        epochs=EPOCHS,
        seed=seed,
        asha=AshaSettings(grace=2, reduction=3),
        domains=domains(),
        sampler=sampler_name,
    )
    sampler = make_sampler(space)
    rng = np.random.default_rng(seed)
    rungs = (*space.rungs, EPOCHS)
    for number in range(trials):
        reached = num_levels(rng, len(rungs))
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
    times: list[float] = []
    for number in range(trials, trials + proposals):
        with _timed(times):
            sampler.ask(number)
    return times


def processor_seconds_per_proposal(trials: int, proposals: int, sampler_name: SamplerName) -> list[float]:
    """Processor time of each proposal of one of the samplers beside eight running trials, made and ended in turn."""
    sampler = finished(trials, sampler_name=sampler_name)
    times = []
    for number in range(trials, trials + 8 + proposals):
        started = time.process_time()
        sampler.ask(number)
        times.append(time.process_time() - started)
        if number >= trials + 8:
            sampler.tell(number - 8, Outcome.PRUNED)
    return times[8:]


def finished_study(folder: Path, trials: int, further: int, seed: int = 0) -> "Study":
    """A study with so many ended trials and room for ``further``, whose tables are written by ``flush`` only."""
    from search.storage.store import StudyStore
    from search.storage.tables import EpochRow, TrialRow
    from search.study.study import Study

    space = load_space(SPACE, [f"trials={trials + further}", f"epochs={EPOCHS}"])
    store = StudyStore.create(folder, {"name": folder.name, "metric": space.metric}, buffer_seconds=math.inf)
    rng = np.random.default_rng(seed)
    levels = (*space.rungs, EPOCHS)
    for number in range(trials):
        params = space.sample(rng)
        epochs = levels[num_levels(rng, len(levels)) - 1]
        values = np.maximum.accumulate(rng.random(epochs))
        for epoch in range(1, epochs + 1):
            report = make_report(epoch, float(values[epoch - 1]))
            store.add_epoch(EpochRow(trial=number, **{key: report[key] for key in EPOCH_COLUMNS}))
        store.put_trial(
            TrialRow(
                number=number,
                state="COMPLETE" if epochs == EPOCHS else "PRUNED",
                params=json.dumps(params),
                config=json.dumps(space.config(params, seed=number).to_flat()),
                seed=number,
                metric=float(values[-1]),
                best_epoch=epochs,
                epochs=epochs,
                seconds=60.0 * epochs,
                seconds_per_epoch=60.0,
            )
        )
    store.flush()
    return Study(folder.name, space, store, sampler=make_sampler(space), asha=make_asha(space))


def seconds_per_event(trials: int, events: int) -> dict[str, list[float]]:
    """Time of each ``start``, ``report``, ``end`` and ``write`` of ``events`` trials that are stopped after an epoch,
    one after the other."""
    times: dict[str, list[float]] = {name: [] for name in ("start", "report", "end", "write")}
    with tempfile.TemporaryDirectory() as scratch:
        study = finished_study(Path(scratch) / "study", trials, events)
        for event in range(events):
            with _timed(times["start"]):
                proposal = study.propose()
            assert proposal is not None, "there is room for it"
            with _timed(times["report"]):
                goes_on = study.report(proposal.number, make_report(1, 1.0 + event))
            assert goes_on, "it is the best so far: ASHA does not end it in the report"
            with _timed(times["write"]):
                study.store.flush()
            with _timed(times["end"]):
                study.end(proposal.number, "pruned")
    return times


@contextmanager
def _timed(times: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times.append(time.perf_counter() - started)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proposal", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", default="100,1000,10000", help="numbers of finished trials, comma-separated")
    parser.add_argument(
        "--proposals", type=int, default=20, metavar="N", help="proposals and events measured at each number"
    )
    parser.add_argument(
        "--load", type=int, metavar="GPUS", help="measure only the load of the driver with so many GPUs"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="simulated time for --load; default: 60"
    )
    parser.add_argument(
        "--sampler", choices=get_args(SamplerName), help="measure only the proposals of this sampler, in processor time"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if arguments.load is not None:
        return _load(arguments)
    if arguments.sampler is not None:
        return _sampler(arguments)
    seconds: dict[str, dict[str, list[float]]] = {}
    for trials in map(int, arguments.trials.split(",")):
        count = arguments.proposals
        for name, times in (
            {"proposal": seconds_per_proposal(trials, count)} | seconds_per_event(trials, count)
        ).items():
            seconds.setdefault(name, {})[str(trials)] = times
            median, most = format_seconds(statistics.median(times)), format_seconds(max(times))
            say(f"{trials:6} finished trials: {name:8} median {median:>8}, most {most:>8}")
    if arguments.json:
        write_json(
            arguments.json,
            {"seconds": seconds["proposal"], "events": seconds, "versions": versions(PACKAGES), "hardware": hardware()},
        )
    return EXIT_OK


def _sampler(arguments: argparse.Namespace) -> int:
    """Print the cost of a sampler's proposals after each number of trials."""
    seconds = {}
    for trials in map(int, arguments.trials.split(",")):
        times = seconds[trials] = processor_seconds_per_proposal(trials, arguments.proposals, arguments.sampler)
        median, most = format_seconds(statistics.median(times)), format_seconds(max(times))
        say(f"{trials:6} finished trials: {arguments.sampler:8} median {median:>8}, most {most:>8}")
    if arguments.json:
        machine = {"versions": versions(PACKAGES), "hardware": hardware()}
        write_json(arguments.json, {"sampler": arguments.sampler, "seconds": seconds} | machine)
    return EXIT_OK


def _load(arguments: argparse.Namespace) -> int:
    """Print the driver's load after each number of trials."""
    loads = [measure_load(int(trials), arguments.load, arguments.seconds) for trials in arguments.trials.split(",")]
    for load in loads:
        say(f"{load.trials:6} finished trials, {load.gpus} GPUs: load of the driver {load.share:.1%} of a core")
        for part, seconds in load.processor_seconds.items():
            count = load.counts[part]
            each = format_seconds(seconds / max(1, count))
            say(f"{'':6} {part:8} {seconds / load.seconds:6.1%}  ({count} times {each} in {load.seconds:g} s)")
    if arguments.json:
        loads_json = [asdict(load) | {"share": load.share} for load in loads]
        write_json(arguments.json, {"load": loads_json, "versions": versions(PACKAGES), "hardware": hardware()})
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
