"""Limits that end a study early: time, GPU time, a value that is good enough, a best that stays.

At a limit no trial starts, and those that run are stopped as by Ctrl-C: their best checkpoints count, and they go on
when the study is continued with a higher one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellseg.config import gain
from cellseg.names import counted
from search.space.settings import Limits

if TYPE_CHECKING:
    from search.storage.store import StudyStore
    from search.storage.tables import TrialRow
    from search.study.experiment import Experiment


@dataclass(frozen=True, slots=True)
class Usage:
    """The amounts that a study has used, over all its searches, of what :class:`Limits` bound."""

    hours: float
    gpu_hours: float
    best: float | None
    """Best value of the metric; None before the first."""
    stale_trials: int
    """Trials that ended since the best one did; 0 while that one runs."""


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """The limit that ended a study early. That is no error."""

    setting: str
    """Dotted name of the limit, as for ``--set``."""
    reason: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.reason}"


class Stopwatch:
    """Wall-clock time of a study: of earlier searches, and of this one from :meth:`start` to :meth:`stop`.

    Args:
        clock: seconds since any moment; a simulation gives its own.
        before: seconds of earlier searches.
    """

    def __init__(self, clock: Callable[[], float], before: float = 0.0):
        self._clock = clock
        self._before = before
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of all searches so far."""
        return self._before + (0.0 if self._since is None else self._clock() - self._since)

    def start(self) -> None:
        """Start counting, unless it is running."""
        if self._since is None:
            self._since = self._clock()

    def stop(self) -> None:
        """Stop counting."""
        self._before, self._since = self.seconds, None


def wall_clock_limit(limits: Limits, hours: float) -> ReachedLimit | None:
    """Return the limit on wall-clock time, if it is reached. The only one that is reached without an event."""
    if limits.hours is None or hours < limits.hours:
        return None
    return ReachedLimit("limits.hours", f"{limits.hours:g} h of wall-clock time used")


def first_reached(limits: Limits, metric: str, usage: Usage) -> ReachedLimit | None:
    """Return a limit that is reached, if any is."""
    if reached := wall_clock_limit(limits, usage.hours):
        return reached
    if limits.gpu_hours is not None and usage.gpu_hours >= limits.gpu_hours:
        return ReachedLimit("limits.gpu_hours", f"{limits.gpu_hours:g} GPU-hours used")
    if limits.target is not None and usage.best is not None and gain(metric, usage.best) >= gain(metric, limits.target):
        return ReachedLimit("limits.target", f"{metric} reached {usage.best:.4f}, target {limits.target:g}")
    if limits.plateau_trials is not None and usage.stale_trials >= limits.plateau_trials:
        return ReachedLimit(
            "limits.plateau_trials", f"{counted(usage.stale_trials, 'trial')} in a row without a new best"
        )
    return None


class LimitWatch:
    """Watches the limits of a study.

    Args:
        experiment: has the limits.
        store: the study's tables, which keep the time that is spent.
        clock: seconds since any moment; a simulation gives its own.
    """

    def __init__(self, experiment: "Experiment", store: "StudyStore", clock: Callable[[], float]):
        self._limits = experiment.limits or Limits()
        self._experiment, self._store = experiment, store
        self._stopwatch = Stopwatch(clock, store.wall_seconds)
        store.count_time(lambda: self._stopwatch.seconds)
        ends = sorted((row.ended, row.number) for row in store.trials() if row.ended is not None)
        self._ended = [number for _, number in ends]
        self._reached: ReachedLimit | None = None
        self._revision = 0  # of the store, up to which these are known:
        self._gpu_seconds: dict[int, float] = {}
        self._sum_of_gpu_seconds = 0.0
        self._best: float | None = None
        self._num_stale = 0
        self.end(None)

    @property
    def reached(self) -> ReachedLimit | None:
        """The limit that ended the search, if one did: it stays, whatever trials report after that."""
        if self._reached is None:
            self._reached = wall_clock_limit(self._limits, self._stopwatch.seconds / 3600)
        return self._reached

    @property
    def usage(self) -> Usage:
        """The amounts used so far."""
        rows = self._store.trials()
        values = [row.metric for row in rows if row.metric is not None]
        return Usage(
            hours=self._stopwatch.seconds / 3600,
            gpu_hours=sum(map(self.gpu_seconds, rows)) / 3600,
            best=max(values, key=lambda value: gain(self._experiment.metric, value), default=None),
            stale_trials=self._stale_trials(),
        )

    def _usage(self) -> Usage:
        """The same from what changed since the last call, and with the trials since the best as of the latest end: for
        every report of a large search. Not for several threads."""
        revision, self._revision = self._revision, self._store.revision
        metric = self._experiment.metric
        for row in self._store.changed_since(revision):
            seconds = self.gpu_seconds(row)
            self._sum_of_gpu_seconds += seconds - self._gpu_seconds.get(row.number, 0.0)
            self._gpu_seconds[row.number] = seconds
            if row.metric is not None and (self._best is None or gain(metric, row.metric) > gain(metric, self._best)):
                self._best = row.metric
        return Usage(
            hours=self._stopwatch.seconds / 3600,
            gpu_hours=self._sum_of_gpu_seconds / 3600,
            best=self._best,
            stale_trials=self._num_stale,
        )

    @property
    def gpus_per_trial(self) -> float:
        """The GPUs that an epoch costs now, while it runs."""
        resources = self._experiment.resources
        return resources.gpu if resources else 0.0

    def gpu_seconds(self, row: "TrialRow") -> float:
        """Return the GPU time of a trial: of each epoch at what it cost then, or now where the tables do not tell."""
        return row.seconds * self.gpus_per_trial if row.gpu_seconds is None else row.gpu_seconds

    def start(self) -> None:
        """Start the clock, unless it runs: the search's first trial does."""
        self._stopwatch.start()

    def look(self) -> None:
        """Check whether the latest event reaches a limit. Time needs no event."""
        if self._reached is None and self._limits != Limits():
            self._reached = first_reached(self._limits, self._experiment.metric, self._usage())

    def end(self, number: int | None) -> None:
        """Take in the end of a trial; None: of those that had ended before."""
        if number is not None:
            self._ended.append(number)
        if self._limits.plateau_trials is not None:
            self._num_stale = self._stale_trials()
        self.look()

    def stop(self) -> None:
        """Stop the clock: the search has stopped."""
        self._stopwatch.stop()

    def describe(self) -> str:
        """Describe what was used and which limit is reached, if one is; empty without limits."""
        used = describe_usage(self._limits, self.usage) if self._limits != Limits() else ""
        return ", ".join(text for text in (used, f"ended by {self.reached}" if self.reached else "") if text)

    def _stale_trials(self) -> int:
        leader = next((row.number for row in self._store.best_trials(1)), None)
        if leader is not None and leader not in self._ended:
            return 0
        since = self._ended[self._ended.index(leader) + 1 :] if leader is not None else self._ended
        return sum(counts(self._experiment, self._store.trial(number)) for number in since)


def counts(experiment: "Experiment", row: "TrialRow") -> bool:
    """Say whether a trial has ended in a way that makes it one of ``trials``: in a search not by a failure."""
    return row.state in {"COMPLETE", "PRUNED", "INFEASIBLE"} or (row.state == "FAILED" and experiment.failures_count)


def describe_usage(limits: Limits, usage: Usage) -> str:
    """Describe how much of each limit is used; the board shows that of the metric."""
    parts = []
    if limits.hours is not None:
        parts.append(f"{usage.hours:.2f} of {limits.hours:g} h")
    if limits.gpu_hours is not None:
        parts.append(f"{usage.gpu_hours:.2f} of {limits.gpu_hours:g} GPU-hours")
    if limits.plateau_trials is not None:
        parts.append(f"{usage.stale_trials} of {counted(limits.plateau_trials, 'trial')} without a new best")
    return ", ".join(parts)
