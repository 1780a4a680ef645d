"""The state of a search and its decisions, without Ray: which trials there are, what to try next, who goes on.

A :class:`Study` is driven by events (propose, report, end) and writes every one of them into its tables. It needs no
cluster, and only the clock that it is given, so a simulation drives the very same object as Ray does.
"""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellseg.config import gain
from cellseg.errors import UserError
from cellseg.files import StorageError
from search.cost import Objective, seconds_per_epoch
from search.sampling.protocol import Outcome, Sampler
from search.space import Params
from search.storage.store import StudyStore
from search.storage.tables import UNFINISHED, EpochRow, TrialRow
from search.study.asha import Asha, Decision
from search.study.experiment import Experiment
from search.study.failures import NON_FINITE
from search.study.limits import LimitWatch, counts
from search.study.stops import Stops
from search.study.storage_watch import STORAGE
from search.study.turns import in_turn

PRUNED = "pruned"
"""The ending of a trial that ASHA stopped."""

OUTCOMES: dict[str, Outcome] = {
    "epochs": Outcome.COMPLETE,
    "patience": Outcome.COMPLETE,
    PRUNED: Outcome.PRUNED,
    "out-of-memory": Outcome.INFEASIBLE,
    NON_FINITE: Outcome.FAILED,
    "invalid": Outcome.FAILED,
    "bug": Outcome.FAILED,
    "lost": Outcome.FAILED,
}
"""Endings of a trial, and their meaning to the sampler. ``lost``: its process or machine died too often."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to be run."""

    number: int
    config: Mapping[str, Any]
    """Flat TrialConfig."""
    folder: Path
    """Folder of its checkpoints; an existing one is continued."""
    epochs: int = field(default=0, compare=False)
    """Epochs of it that the tables have."""


class Study:
    """The state of a search.

    Events may come from several threads, and are taken in one after the other: a signal interrupts the study whatever
    the thread that runs it is doing.

    Args:
        name: the study's name.
        experiment: a space or an ablation. Its trial target may be larger than in an earlier run.
        store: its tables, empty or with what earlier runs left. Trials that had ended are given to the sampler and to
            ASHA again; those that had not are proposed first, under their old numbers.
        sampler: proposes trials; new, see :func:`search.study.choose.make_sampler`.
        asha: decides who goes on; new, see :func:`search.study.choose.make_asha`.
        fixed: flat settings over the experiment's in every trial (where the data lie, for one).
        clock: seconds since any moment, for the limit on wall-clock time.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        store: StudyStore,
        *,
        sampler: Sampler,
        asha: Asha,
        fixed: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.objective = Objective.of(experiment.metric, experiment.objective)
        assert store.objective == self.objective, "or the tables would rank by something else than the study"
        self.name = name
        self.experiment = experiment
        self.store = store
        self.asha = asha
        self.sampler = sampler
        self.lock = threading.RLock()
        self._is_interrupted = False
        self._fixed = dict(fixed or {})
        self._running: set[int] = set()
        self._waiting: list[int] = []
        self._left_out: set[int] = set()  # trials of earlier runs that are not wanted now
        self._finished: set[int] = set()  # trials that count, by the store's revision that was looked at last
        self._counted = 0
        self._epoch_seconds: dict[int, list[float]] = {}
        self._replay()
        self._stops = Stops(experiment, store, clock)

    # What is known

    @property
    def limits(self) -> LimitWatch:
        """The limits, how much of each is used, and which is reached."""
        return self._stops.limits

    @property
    def abort_reason(self) -> str | None:
        """Why the search gave up, if it did: its trials keep failing."""
        return self._stops.failures.reason

    @property
    def storage_error(self) -> StorageError | None:
        """Why the search stopped, if its storage failed or is almost full: nobody's failure, and nothing is lost."""
        return self._stops.storage.error

    @property
    def rows(self) -> list[TrialRow]:
        """All trials by number."""
        return self.store.trials()

    @property
    def leaderboard(self) -> list[TrialRow]:
        """Trials with a value, best first; of equal ones the earlier."""
        return self.store.best_trials()

    @property
    def num_finished(self) -> int:
        """Trials that count towards the target: all that ended, in a search but those that failed."""
        with self.lock:
            revision, self._counted = self._counted, self.store.revision
            for row in self.store.changed_since(revision):
                is_counted = counts(self.experiment, row) and row.number not in self._left_out
                (self._finished.add if is_counted else self._finished.discard)(row.number)
            return len(self._finished)

    @property
    def must_stop(self) -> bool:
        """Whether trials that run are to be stopped at once: the search was interrupted, reached a limit or gave up, or
        storage failed. Cheap."""
        return self._is_interrupted or self._stops.must_stop

    @property
    def is_over(self) -> bool:
        """Whether all trials are done, a limit is reached, or the search gave up."""
        return self._stops.has_ended or self.num_finished >= self.experiment.trials

    @property
    def num_running(self) -> int:
        """Trials that were proposed and have not ended."""
        return len(self._running)

    # What happens

    @in_turn
    def propose(self) -> Proposal | None:
        """Return the next trial, or None if those that run or ended make up the target, or the search must stop."""
        if self.must_stop or self.num_finished + len(self._running) >= self.experiment.trials:
            return None
        if self._waiting:
            number = self._waiting.pop(0)
            row = replace(self.store.trial(number), state="RUNNING", reason="", ended=None)
        else:
            number = self.store.last_number + 1
            self.store.clear_checkpoints(number)
            params = self.sampler.ask(number)
            try:
                row = self._new_row(number, params)
            except UserError as error:
                self._reject(number, params, error)
                return self.propose()
        self._running.add(number)
        self.store.put_trial(row)
        return Proposal(number, json.loads(row.config), self.store.checkpoint_folder(number).resolve(), row.epochs)

    @in_turn
    def start(self) -> None:
        """Take in that a proposed trial has begun to run. Until the first does, the search waits for machines, and the
        time is not its own."""
        if not self._is_interrupted:
            self.limits.start()

    @in_turn
    def report(self, number: int, report: Mapping[str, Any], node: str = "") -> bool:
        """Take in an epoch of a running trial; return whether the trial goes on.

        A trial that ASHA stops is ended here, as pruned. One whose report says that training is over is not: the caller
        ends it. (:attr:`must_stop` is another matter.) An epoch is judged once: what passed a rung has passed it, also
        if the trial is started again from an earlier epoch.

        The trial's row tells that an epoch was judged, and is written with the decision: an epoch in the tables that
        its trial does not count was never judged, see :meth:`_replay`.

        Args:
            node: name of the machine.
            report: a :class:`~cellseg.training.epoch_report.EpochReport` as a dict, with None for what is not known.
                Ranking, pruning and the sampler all use the objective of its ``best_value``: the value of the
                checkpoint that would be exported, at the cost that the trial has shown so far.
        """
        self.start()
        epoch, ending = report["epoch"], report["ending"]
        if self._is_interrupted:
            return False
        if epoch <= self.store.trial(number).epochs:  # a trial that was started again repeats what it had reported
            return ending is None
        row = self._add_epoch(number, report, node)
        decision = None
        # A checkpoint does not tell the cost; the next epoch does.
        if (value := self.objective.value(report["best_value"], row)) is not None:
            self.sampler.report(number, epoch, value)
            by_itself = ending is not None
            decision = self.asha.report(
                number, epoch, self._gain(value), tie_breaker(report["metrics"]), by_itself=by_itself
            )
        with self.store.held():
            self.store.put_trial(row)
            self.limits.look()
            if ending is None and decision is not None and not decision.goes_on:
                self.end(number, PRUNED, self._describe_decision(decision))
                return False
        return ending is None

    def _add_epoch(self, number: int, report: Mapping[str, Any], node: str) -> TrialRow:
        """Put the epoch into its table; return the trial's new row, which the caller puts."""
        row = self.store.trial(number)
        self._epoch_seconds.setdefault(number, []).append(report["seconds"])
        self.store.add_epoch(EpochRow.of_report(number, report))
        return replace(
            row,
            metric=report["best_value"],
            best_epoch=report["best_epoch"],
            epochs=report["epoch"],
            seconds=row.seconds + report["seconds"],
            gpu_seconds=self.limits.gpu_seconds(row) + report["seconds"] * self.limits.gpus_per_trial,
            seconds_per_epoch=seconds_per_epoch(self._epoch_seconds[number]),
            node=node,
            peak_memory_bytes=max(row.peak_memory_bytes or 0, report["peak_memory_bytes"] or 0),
            parameters=report.get("parameters") or row.parameters,
        )

    @in_turn
    def end(self, number: int, ending: str, detail: str = "") -> None:
        """End a trial, for one of the reasons in :data:`OUTCOMES`, unless the search was interrupted: what happens to
        trials after that is no end of theirs.

        One whose storage failed (``storage``) has not ended: it is interrupted, and the search stops.
        """
        if self._is_interrupted:
            return
        row = self.store.trial(number)
        reason = f"{ending}: {detail}" if detail else ending
        if ending == STORAGE:
            self._stops.storage.end(detail)
            self._running.discard(number)
            self.store.put_trial(replace(row, state="INTERRUPTED", reason=reason))
            return
        outcome = OUTCOMES[ending]
        self._running.discard(number)
        row = replace(row, state=outcome.name, reason=reason, ended=_now())
        self.store.put_trial(row)
        self.sampler.tell(number, *self._learned(row), reason)
        # Only ended trials compete: the objective of one that runs may still fall, and what was deleted for it is gone.
        self.store.keep_checkpoints(frozenset(self.store.best_ended(self.experiment.keep)))
        self._stops.end(number, ending, detail, failed=outcome is Outcome.FAILED)

    @in_turn
    def put_back(self, number: int, reason: str) -> None:
        """Take back a running trial that cannot go on where it was: it is proposed again, before others."""
        if self._is_interrupted:
            return
        self._running.discard(number)
        self._waiting.insert(0, number)
        self.store.put_trial(replace(self.store.trial(number), state="INTERRUPTED", reason=reason))

    @in_turn
    def interrupt(self) -> list[int]:
        """Stop before the end: trials that run are kept for the next time. Return their numbers.

        Nothing that is told afterwards is taken in.
        """
        self._is_interrupted = True
        numbers = sorted(self._running)
        self.limits.stop()
        reason = f"the search was stopped by {limit}" if (limit := self.limits.reached) else "the search was stopped"
        if limit is None and (error := self.storage_error) is not None:
            reason = f"the search was stopped: {error}"
        for number in numbers:
            self.store.put_trial(replace(self.store.trial(number), state="INTERRUPTED", reason=reason))
        self._running.clear()
        self.store.flush()
        return numbers

    @in_turn
    def flush(self) -> None:
        """Write everything that is still in memory only."""
        self.store.flush()

    @in_turn
    def pause(self) -> None:
        """Use a moment in which nothing waits for the study to write what waits, see
        :meth:`search.storage.store.StudyStore.pause`."""
        self.store.pause()

    # Within

    def _replay(self) -> None:
        epochs = self.store.epochs_by_trial()
        for row in self.rows:
            params = json.loads(row.params)
            if not self.experiment.includes(params):
                self._left_out.add(row.number)
            # An epoch beyond those was written, but not judged before the search was killed: it is reported again.
            history = [epoch for epoch in epochs.get(row.number, []) if epoch.epoch <= row.epochs]
            values = self.objective.values_by_epoch(row, history)
            self._epoch_seconds[row.number] = [epoch.seconds for epoch in history]
            goes_on = row.state in UNFINISHED
            outcome, value = (None, None) if goes_on else self._learned(row)
            self.sampler.replay(
                row.number,
                params,
                outcome,
                value=value,
                epochs=values.items(),
                reason=row.reason,
            )
            losses = {epoch.epoch: tie_breaker(epoch.metrics) for epoch in history}
            judged = [(epoch, self._gain(value), losses[epoch]) for epoch, value in values.items()]
            self.asha.replay(row.number, judged, stopped=row.state == Outcome.PRUNED.name)
            if goes_on and row.number not in self._left_out:
                self._waiting.append(row.number)
            if row.state == "RUNNING":
                self.store.put_trial(replace(row, state="INTERRUPTED", reason="the search was killed"))

    def _learned(self, row: TrialRow) -> tuple[Outcome, float | None]:
        """The lesson of a trial that ended, for the sampler: its outcome and, of a complete one, its objective. A trial
        whose cost is not known says nothing about its config."""
        outcome = Outcome(row.state)
        value = self.objective.trial_value(row)
        if outcome is not Outcome.COMPLETE:
            return outcome, None
        return (Outcome.FAILED, None) if value is None else (outcome, value)

    def _new_row(self, number: int, params: Params) -> TrialRow:
        seed = self._seed(number, params)
        config = self.experiment.config(params, seed=seed).to_flat() | self._fixed
        return TrialRow(
            number=number,
            state="RUNNING",
            params=json.dumps(params),
            config=json.dumps(config),
            seed=seed,
            started=_now(),
        )

    def _reject(self, number: int, params: Params, error: UserError) -> None:
        """End a trial whose values break a rule over several fields, which the space's check did not come upon."""
        seed = self._seed(number, params)
        self._running.add(number)
        self.store.put_trial(
            TrialRow(number=number, state="RUNNING", params=json.dumps(params), config="{}", seed=seed, started=_now())
        )
        self.end(number, "invalid", str(error))

    def _seed(self, number: int, params: Params) -> int:
        return trial_seed(self.experiment.seed, self.experiment.seed_index(params, number))

    def _gain(self, value: float) -> float:
        """The objective with the sign that ASHA expects, larger is better; applied twice, the objective again."""
        return gain(self.experiment.metric, value)

    def _describe_decision(self, decision: Decision) -> str:
        """Why ASHA stops a trial, in words."""
        place = f"rank {decision.rank} of {decision.num_seen} at epoch {decision.epoch}"
        assert decision.needed is not None, "the first at a rung goes on"
        had = self._gain(decision.value)
        if decision.value == decision.needed:
            return f"{place}, tied at {had:.4f}"
        return f"{place}, needed {self._gain(decision.needed):.4f}, had {had:.4f}"


def trial_seed(study_seed: int, index: int) -> int:
    """Return the seed of a trial: different for every index, the same whenever the study is run again."""
    return (study_seed * 100_003 + index) % 2**32


def tie_breaker(metrics: Mapping[str, float | None]) -> float:
    """Return the validation loss of an epoch, by which ASHA tells equal values apart; an unknown one is the worst."""
    loss = metrics.get("loss/validation")
    return loss if loss is not None and math.isfinite(loss) else sys.float_info.max


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
