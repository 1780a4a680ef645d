"""Metrics of a running study for operators: Ray exports them to Prometheus on every machine's metrics port.

Ray puts ``ray_`` before each name, and ``_total`` behind that of a counter. The dashboard of ``deploy/metrics/`` shows
them.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.util import metrics

from search.cluster.fleet import Fleet
from search.cluster.slots import node_name
from search.cluster.tune_parts import Disposable
from search.sampling.protocol import Outcome
from search.study.study import Study

UPDATE_SECONDS = 1.0
"""Metrics are told this often. Ray forgets a gauge that is not told again for some time."""
MAX_SHARE = 0.01
"""Part of the driver's time that telling may take: with ten thousand trials it is done less often."""
SPACE_SECONDS = 10.0
"""The free space is asked for this often: on a network's disk, that takes a while."""
STATES = (*(outcome.name.lower() for outcome in Outcome), "running", "interrupted")


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that is exported."""

    name: str
    kind: Literal["gauge", "counter"]
    description: str
    tag: str = ""
    """A tag beside ``study``, if it has one."""

    @property
    def exported(self) -> str:
        """Its name for Prometheus."""
        return f"ray_{self.name}{'_total' if self.kind == 'counter' else ''}"


METRICS = (
    Metric("cellseg_trials", "gauge", "Trials by state.", "state"),
    Metric("cellseg_finished_trials", "gauge", "Trials that count towards the target."),
    Metric("cellseg_target_trials", "gauge", "Trials that the study is to finish."),
    Metric("cellseg_best_value", "gauge", "Best value of the study's metric; nothing before the first.", "metric"),
    Metric("cellseg_slots", "gauge", "Trials that the study may have side by side now."),
    Metric("cellseg_idle_slots", "gauge", "Slots of the study in which no trial runs."),
    Metric("cellseg_write_lag_seconds", "gauge", "Time for which events have waited to be written to the tables."),
    Metric("cellseg_free_bytes", "gauge", "Free space of the results folder."),
    Metric("cellseg_reports", "counter", "Epochs that trials reported."),
    Metric("cellseg_losses", "counter", "Processes of trials that were lost, by machine.", "node"),
)
"""All that is exported."""


def _ray_metric(metric: Metric) -> metrics.Metric:
    make = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return make(metric.name, metric.description, ("study", *([metric.tag] if metric.tag else [])))


def _node_name(node_id: str) -> str:
    """Name a machine of the cluster, also one that is gone."""
    return next((node_name(node) for node in ray.nodes() if node["NodeID"] == node_id), "unknown")


class StudyMetrics(Disposable, tune.Callback):
    """Tells the metrics of a study while Tune works on it, at most every :data:`UPDATE_SECONDS`.

    Nobody can know who listens, so the values are told all the same: that takes half a millisecond, see also
    :data:`MAX_SHARE`.

    Args:
        make: what makes the instrument of a metric.
        name_of: names a machine by its id.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        make: Callable[[Metric], Any] = _ray_metric,
        name_of: Callable[[str], str] = _node_name,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._study, self._fleet, self._name_of, self._clock = study, fleet, name_of, clock
        self._instruments = {metric.name: make(metric) for metric in METRICS}
        self._next = self._next_space = clock()
        self._reports = 0
        self._losses: Counter[str] = Counter()
        self._free: int | None = None

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        self._reports += 1

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = self._clock()
        if now < self._next:
            return
        if now >= self._next_space:
            self._next_space = now + SPACE_SECONDS
            self._free = _free_bytes(self._study.store.folder)
        self.tell()
        self._next = now + max(UPDATE_SECONDS, (self._clock() - now) / MAX_SHARE)

    def tell(self) -> None:
        """Tell all values as they are now."""
        study, slots = self._study, self._fleet.slots
        states = Counter(row.state.lower() for row in study.rows)
        for state in STATES:
            self._set("cellseg_trials", states[state], state=state)
        self._set("cellseg_finished_trials", study.num_finished)
        self._set("cellseg_target_trials", study.experiment.trials)
        self._set("cellseg_slots", slots)
        self._set("cellseg_idle_slots", max(0, slots - states["running"]))
        self._set("cellseg_write_lag_seconds", study.store.lag_seconds)
        metric = study.experiment.metric
        if (ranked := study.leaderboard) and ranked[0].metric is not None:
            self._set("cellseg_best_value", ranked[0].metric, metric=metric)
        if self._free is not None:
            self._set("cellseg_free_bytes", self._free)
        self._add("cellseg_reports", self._reports)
        self._reports = 0
        for node, count in self._fleet.num_losses.items():
            if new := count - self._losses[node]:
                self._add("cellseg_losses", new, node=self._name_of(node))
                self._losses[node] = count

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._instruments[name].set(value, tags={"study": self._study.name, **tags})

    def _add(self, name: str, value: float, **tags: str) -> None:
        if value > 0:
            self._instruments[name].inc(value, tags={"study": self._study.name, **tags})


def _free_bytes(folder: Path) -> int | None:
    """Free space in bytes; None if the file system does not tell."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None
