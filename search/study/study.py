"""What a search knows and decides, without Ray: which trials there are, what to try next, who goes on.

A :class:`Study` is driven by events (propose, report, end) and writes every one of them into its tables. It needs no
cluster, and only the clock that it is given, so a simulation drives the very same object as Ray does.
"""

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellseg.config import gain
from cellseg.errors import UserError
from search.cost import Objective, seconds_per_epoch
from search.sampling.sampler import Outcome
from search.space import Params
from search.storage.store import EpochRow, StudyStore, TrialRow
from search.study.experiment import Experiment, Sampler
from search.study.limits import LimitWatch, counts

PRUNED = "pruned"
"""The ending of a trial that ASHA stopped."""

OUTCOMES: dict[str, Outcome] = {
    "epochs": Outcome.COMPLETE,
    "patience": Outcome.COMPLETE,
    PRUNED: Outcome.PRUNED,
    "out-of-memory": Outcome.INFEASIBLE,
    "non-finite": Outcome.FAILED,
    "invalid": Outcome.FAILED,
    "bug": Outcome.FAILED,
    "lost": Outcome.FAILED,
}
"""How a trial can end, and what that means to the sampler. ``lost``: its process or machine died too often."""

FAILURES_IN_A_ROW, ANY_FAILURES_IN_A_ROW = 3, 10
"""So many trials failing for the same reason, or for any, with none that did not in between, end the search: more would
fail too."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to be run."""

    number: int
    config: Mapping[str, Any]
    """Flat TrialConfig."""
    folder: Path
    """Where its checkpoints go; one that lies there is continued."""


class Study:
    """The state of a search.

    Args:
        name: the study's name.
        space: what is searched, or the table that is measured. Its trial target may be larger than in an earlier run.
        store: its tables, empty or with what earlier runs left. Trials that had ended are given to the sampler and to
            ASHA again; those that had not are proposed first, under their old numbers.
        fixed: flat settings over the space's in every trial (where the data lie, for one).
        clock: seconds since any moment, for the limit on wall-clock time.
    """

    def __init__(
        self,
        name: str,
        space: Experiment,
        store: StudyStore,
        fixed: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.objective = Objective.of(space.metric, space.objective)
        assert store.objective == self.objective, "or the table would rank by something else than the study"
        self.name = name
        self.space = space
        self.store = store
        self.asha = space.make_asha()
        self.sampler: Sampler = space.make_sampler()
        self.abort_reason: str | None = None
        self._fixed = dict(fixed or {})
        self._running: set[int] = set()
        self._waiting: list[int] = []
        self._left_out: set[int] = set()  # trials of former runs that are not wanted now
        self._failures: list[str] = []
        self._without_checkpoints: set[int] = set()  # for good: ended trials whose folders were deleted
        self._epoch_seconds: dict[int, list[float]] = {}
        self._replay()
        self.limits = LimitWatch(space, store, clock)

    # What is known

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
        return sum(counts(self.space, row) and row.number not in self._left_out for row in self.rows)

    @property
    def must_stop(self) -> bool:
        """Whether trials that run are to be stopped at once: a limit is reached, or the search gave up. Cheap."""
        return self.abort_reason is not None or self.limits.reached is not None

    @property
    def is_over(self) -> bool:
        """Whether all trials are done, a limit is reached, or the search gave up."""
        return self.must_stop or self.num_finished >= self.space.trials

    # What happens

    def propose(self) -> Proposal | None:
        """The next trial, or None if those that run (or have ended) make up the target, or the search is to stop."""
        if self.must_stop or self.num_finished + len(self._running) >= self.space.trials:
            return None
        self.limits.start()
        if self._waiting:
            number = self._waiting.pop(0)
            row = replace(self.store.trial(number), state="RUNNING", reason="", ended=None)
        else:
            number = max((row.number for row in self.rows), default=-1) + 1
            params = self.sampler.ask(number)
            try:
                row = self._new_row(number, params)
            except UserError as error:
                self._reject(number, params, error)
                return self.propose()
        self._running.add(number)
        self.store.put_trial(row)
        return Proposal(number, json.loads(row.config), self.store.checkpoint_folder(number).resolve())

    def report(self, number: int, report: Mapping[str, Any], node: str = "") -> bool:
        """Take in an epoch; whether the trial goes on, as ASHA says (:attr:`must_stop` is another matter).

        Args:
            node: name of the machine.
            report: a :class:`~cellseg.training.epoch_report.EpochReport` as a dict, with None for what is not known.
                Ranking, pruning and the sampler all use the objective of its ``best_value``: the value of the
                checkpoint that would be exported, at the cost that the trial has shown so far.
        """
        epoch = report["epoch"]
        if epoch > self.store.trial(number).epochs:  # a trial that was started again repeats the epoch it goes on from
            self._add_epoch(number, report, node)
        self.limits.look()
        value = self.objective.value(report["best_value"], self.store.trial(number))
        if value is None:  # a checkpoint does not tell the cost; the next epoch does
            return True
        self.sampler.report(number, epoch, value)
        return self.asha.report(number, epoch, gain(self.space.metric, value), tie_breaker(report["metrics"]))

    def _add_epoch(self, number: int, report: Mapping[str, Any], node: str) -> None:
        row = self.store.trial(number)
        self._epoch_seconds.setdefault(number, []).append(report["seconds"])
        self.store.add_epoch(
            EpochRow(
                trial=number,
                epoch=report["epoch"],
                metrics=report["metrics"],
                losses=report["losses"],
                seconds=report["seconds"],
                images_per_second=report["images_per_second"],
                peak_memory_bytes=report["peak_memory_bytes"],
                learning_rate=report["learning_rate"],
            )
        )
        self.store.put_trial(
            replace(
                row,
                metric=report["best_value"],
                best_epoch=report["best_epoch"],
                epochs=report["epoch"],
                seconds=row.seconds + report["seconds"],
                seconds_per_epoch=seconds_per_epoch(self._epoch_seconds[number]),
                node=node,
                peak_memory_bytes=max(row.peak_memory_bytes or 0, report["peak_memory_bytes"] or 0),
                parameters=report.get("parameters") or row.parameters,
            )
        )

    def end(self, number: int, ending: str, detail: str = "") -> None:
        """A trial is over, for one of the reasons in :data:`OUTCOMES`."""
        outcome = OUTCOMES[ending]
        row = self.store.trial(number)
        reason = f"{ending}: {detail}" if detail else ending
        self._running.discard(number)
        row = replace(row, state=outcome.name, reason=reason, ended=_now())
        self.store.put_trial(row)
        self.sampler.tell(number, *self._learned(row), reason)
        self.limits.end(number)
        self._clean_checkpoints()
        self._watch_failures(outcome, ending, detail)

    def interrupt(self) -> list[int]:
        """The search stops before its end: trials that run are kept for the next time. Returns their numbers."""
        numbers = sorted(self._running)
        self.limits.stop()
        reason = f"the search was stopped by {limit}" if (limit := self.limits.reached) else "the search was stopped"
        for number in numbers:
            self.store.put_trial(replace(self.store.trial(number), state="INTERRUPTED", reason=reason))
        self._running.clear()
        self.store.flush()
        return numbers

    # Within

    def _replay(self) -> None:
        epochs = self.store.epochs_by_trial()
        for row in self.rows:
            params = json.loads(row.params)
            if not self.space.includes(params):
                self._left_out.add(row.number)
            history = epochs.get(row.number, [])
            values = self.objective.values_by_epoch(row, history)
            self._epoch_seconds[row.number] = [epoch.seconds for epoch in history]
            goes_on = row.state in {"RUNNING", "INTERRUPTED"}
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
            self.asha.replay(
                row.number, [(epoch, gain(self.space.metric, value), losses[epoch]) for epoch, value in values.items()]
            )
            if goes_on and row.number not in self._left_out:
                self._waiting.append(row.number)
            if row.state == "RUNNING":
                self.store.put_trial(replace(row, state="INTERRUPTED", reason="the search was killed"))

    def _learned(self, row: TrialRow) -> tuple[Outcome, float | None]:
        """What a trial that ended tells the sampler: outcome and, of a complete one, objective. One whose cost is not
        known says nothing about its config."""
        outcome = Outcome(row.state)
        value = self.objective.trial_value(row)
        if outcome is not Outcome.COMPLETE:
            return outcome, None
        return (Outcome.FAILED, None) if value is None else (outcome, value)

    def _new_row(self, number: int, params: Params) -> TrialRow:
        seed = self._seed(number, params)
        config = self.space.config(params, seed=seed).to_flat() | self._fixed
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
        return trial_seed(self.space.seed, self.space.seed_index(params, number))

    def _clean_checkpoints(self) -> None:
        """Keep weights of the best trials, resumable state of unfinished ones, and nothing else."""
        best = {row.number for row in self.leaderboard[: self.space.keep]}
        for row in self.rows:
            if row.state in {"RUNNING", "INTERRUPTED"} or row.number in self._without_checkpoints:
                continue
            folder = self.store.checkpoint_folder(row.number)
            if row.number in best:
                shutil.rmtree(folder / "last", ignore_errors=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                self._without_checkpoints.add(row.number)

    def _watch_failures(self, outcome: Outcome, ending: str, detail: str) -> None:
        if outcome is not Outcome.FAILED or self.space.failures_count:
            self._failures.clear()
            return
        cause = detail.strip().splitlines()[-1] if detail.strip() else ending
        self._failures.append(cause)
        last = self._failures[-FAILURES_IN_A_ROW:]
        # A loss that explodes is a trial's own: neighbours with a smaller learning rate may train well.
        if ending != "non-finite" and len(last) == FAILURES_IN_A_ROW and len(set(last)) == 1:
            self.abort_reason = f"{FAILURES_IN_A_ROW} trials in a row ended as '{ending}': {cause}"
        elif len(self._failures) >= ANY_FAILURES_IN_A_ROW:
            self.abort_reason = f"{ANY_FAILURES_IN_A_ROW} trials in a row failed, the last as '{ending}': {cause}"


def trial_seed(study_seed: int, index: int) -> int:
    """The seed of a trial: different for every index, the same whenever the study is run again."""
    return (study_seed * 100_003 + index) % 2**32


def tie_breaker(metrics: Mapping[str, float | None]) -> float:
    """The validation loss of an epoch, by which ASHA tells equal values apart; an unknown one is worse than any."""
    loss = metrics.get("loss/validation")
    return loss if loss is not None and math.isfinite(loss) else sys.float_info.max


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
