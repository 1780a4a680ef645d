"""The driver's load in a large search: processor time per second of a simulated search.

:mod:`benchmarks.proposal` prints it. The study, its tables on disk, the sampler, ASHA and the board are the product's
own, called in the order in which Tune's loop calls them. Workers and their epochs are simulated, and so is time: the
search waits for nothing, and what is measured is the work of the driver alone. Ray's own work is not in it.
"""

import heapq
import io
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from search.space import Space, load_space

if TYPE_CHECKING:
    from search.study.study import Proposal, Study

SPACE = Path(__file__).parents[1] / "spaces" / "quickstart.yaml"
"""The sampled space: one that ships with the product."""
EPOCHS, GRACE, REDUCTION = 54, 4, 3
"""Full length and rungs. A third go on at each rung: 4 + 8/3 + 24/9 + 18/27 = 10 epochs per trial."""
STEP_SECONDS = 0.1
"""Tune's loop ends a step after so long without an event."""
PARTS = ("propose", "report", "end", "flush", "ahead", "board")


@dataclass(frozen=True)
class Load:
    """The driver's work during a simulated part of a search."""

    trials: int
    """Trials that had ended before."""
    gpus: int
    seconds: float
    """Simulated time."""
    processor_seconds: dict[str, float]
    """Work by kind: of events (``propose``, ``report``, ``end``), of writing the tables (``flush``), of proposals made
    before a slot is free (``ahead``), and of what is printed (``board``)."""
    counts: dict[str, int]
    """How often each was done."""

    @property
    def share(self) -> float:
        """Processor time per simulated second: 1 is a core that does nothing else."""
        return sum(self.processor_seconds.values()) / self.seconds


def make_space(trials: int) -> Space:
    """The space of the simulated search, for so many trials."""
    settings = [f"trials={trials}", f"epochs={EPOCHS}", f"asha.grace={GRACE}", f"asha.reduction={REDUCTION}"]
    return load_space(SPACE, settings)


def large_study(
    folder: Path, space: Space, trials: int, running: int, clock: Callable[[], float], seed: int = 0
) -> "Study":
    """A study with so many ended trials, and others that go on: those are the first that it proposes."""
    from search.storage.store import StudyStore
    from search.storage.tables import EpochRow, TrialRow
    from search.study.choose import make_asha, make_sampler
    from search.study.study import Study

    store = StudyStore.create(folder, {"name": folder.name, "metric": space.metric}, buffer_seconds=math.inf)
    rng = np.random.default_rng(seed)
    levels = (*space.rungs, EPOCHS)
    for number in range(trials + running):
        params = space.sample(rng)
        epochs = levels[num_levels(rng, len(levels)) - 1]
        ended = number < trials
        if not ended:
            epochs = int(rng.integers(0, epochs))
        values = [curve_value(number, epoch) for epoch in range(1, epochs + 1)]
        for epoch, value in enumerate(values, start=1):
            report = make_report(epoch, value)
            store.add_epoch(EpochRow(trial=number, **{key: report[key] for key in EPOCH_COLUMNS}))
        state = "INTERRUPTED" if not ended else "COMPLETE" if epochs == EPOCHS else "PRUNED"
        store.put_trial(
            TrialRow(
                number=number,
                state=state,
                reason="" if not ended else "epochs" if state == "COMPLETE" else "pruned: rank 9 of 10",
                params=json.dumps(params),
                config=json.dumps(space.config(params, seed=number).to_flat()),
                seed=number,
                metric=max(values, default=None),
                best_epoch=epochs or None,
                epochs=epochs,
                seconds=60.0 * epochs,
                seconds_per_epoch=60.0 if epochs else None,
                gpu_seconds=60.0 * epochs,
                started="2026-01-01T00:00:00+00:00",
                ended="2026-01-01T00:10:00+00:00" if ended else None,
                node="node",
            )
        )
    store.flush()
    store = StudyStore.open(folder, clock=clock)
    return Study(folder.name, space, store, sampler=make_sampler(space), asha=make_asha(space), clock=clock)


def measure_load(trials: int, gpus: int, seconds: float, epoch_seconds: float = 60.0, seed: int = 0) -> Load:
    """Simulate so many seconds of a search on ``gpus`` workers, after so many ended trials."""
    with tempfile.TemporaryDirectory() as scratch:
        simulation = _Simulation(Path(scratch) / "study", trials, gpus, seconds, epoch_seconds, seed)
        simulation.run(seconds)
        return Load(trials, gpus, seconds, simulation.spent, simulation.counts)


class _Simulation:
    """A search whose workers and clock are simulated."""

    def __init__(self, folder: Path, trials: int, gpus: int, seconds: float, epoch_seconds: float, seed: int):
        from rich.console import Console

        from search.cluster.driver import BUFFER_SECONDS
        from search.cluster.tune_parts import Pauses
        from search.views.board import Board

        self._now = 0.0
        self._epoch_seconds = epoch_seconds
        self._gpus = gpus
        self._rng = np.random.default_rng(seed)
        further = gpus + int(2 * gpus * seconds / epoch_seconds) + 100
        self._study = large_study(folder, make_space(trials + further), trials, gpus, lambda: self._now, seed)
        self._buffered = self._study.store.buffered(BUFFER_SECONDS)
        for part, owner, name in (("flush", self._study, "pause"), ("ahead", self._study.sampler, "prepare")):
            setattr(owner, name, partial(self._timed, part, getattr(owner, name)))
        fleet: Any = SimpleNamespace(slots=gpus, started=lambda *_: None)
        self._pauses = Pauses(self._study, fleet, lambda: self._now)
        self._board = Board(self._study, Console(file=io.StringIO(), width=160))
        self._reports: list[tuple[float, int, int]] = []
        """Time, trial and epoch of the next report of each worker, a heap."""
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.counts = dict.fromkeys(PARTS, 0)

    def run(self, seconds: float) -> None:
        with self._buffered:
            for _ in range(self._gpus):
                proposal = self._study.propose()
                assert proposal is not None
                self._start(proposal, self._rng.random())
            self._study.flush()
            self._board.update()
            while (event := heapq.heappop(self._reports))[0] < seconds:
                self._rest(event[0])
                self._now = event[0]
                self._report(*event[1:])

    def _start(self, proposal: "Proposal", epochs: float) -> None:
        """Let a worker begin a trial, with ``epochs`` to go until its next report."""
        done = self._study.store.trial(proposal.number).epochs
        heapq.heappush(self._reports, (self._now + epochs * self._epoch_seconds, proposal.number, done + 1))

    def _report(self, number: int, epoch: int) -> None:
        """One event as Tune's loop takes it in, and the start of the next trial if a slot comes free."""
        study, pauses = self._study, self._pauses
        report = make_report(epoch, curve_value(number, epoch))
        with study.store.held():
            goes_on = self._timed("report", study.report, number, report, "node")
            if goes_on and epoch == EPOCHS:
                self._timed("end", study.end, number, "epochs")
                goes_on = False
        self._timed("board", self._board.update)
        pauses.on_trial_result()
        if goes_on:
            heapq.heappush(self._reports, (self._now + self._epoch_seconds * self._pace(), number, epoch + 1))
        else:
            pauses.on_trial_complete()
            pauses.on_step_end()
            proposal = self._timed("propose", study.propose)
            assert proposal is not None, "there is room for it"
            self._start(proposal, self._pace())
            trial: Any = SimpleNamespace(
                config={"number": proposal.number}, temporary_state=SimpleNamespace(ray_actor=0)
            )
            pauses.on_trial_start(0, [], trial)
        pauses.on_step_end()

    def _rest(self, until: float) -> None:
        """Let steps without an event pass."""
        while self._now + STEP_SECONDS < until:
            self._now += STEP_SECONDS
            self._pauses.on_step_end()

    def _pace(self) -> float:
        """The length of an epoch, by the mean."""
        return self._rng.uniform(0.8, 1.2)

    def _timed(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.process_time()
        result = work(*arguments)
        self.spent[part] += time.process_time() - started
        self.counts[part] += 1
        return result


EPOCH_COLUMNS = (
    "epoch",
    "metrics",
    "losses",
    "seconds",
    "images_per_second",
    "peak_memory_bytes",
    "learning_rate",
)


def curve_value(number: int, epoch: int) -> float:
    """The best value of a trial after an epoch: trials differ in what they reach, and rise towards it."""
    quality = (number * 0.6180339887) % 1
    return quality * (1 - 0.5 / epoch)


def make_report(epoch: int, value: float) -> dict[str, Any]:
    """An EpochReport as a dict, with about as many metrics and losses as a real one."""
    return {
        "epoch": epoch,
        "metrics": {f"segm/{number}": value for number in range(12)} | {"segm/AP50": value, "loss/validation": 1.0},
        "losses": {f"loss_{number}": 1.0 for number in range(6)},
        "value": value,
        "best_value": value,
        "best_epoch": epoch,
        "learning_rate": 1e-3,
        "seconds": 60.0,
        "images_per_second": 10.0,
        "peak_memory_bytes": 10**9,
        "parameters": 44_000_000,
        "ending": None,
    }


def num_levels(rng: np.random.Generator, levels: int) -> int:
    """Number of rungs, full length included, that a trial reaches, 1 to ``levels``: a third continue at each."""
    return min(int(rng.geometric(2 / 3)), levels)
