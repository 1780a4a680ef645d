"""What trackers are told of a search: every epoch and every end that the study has taken in."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray import tune

from search.cluster.trainable import REPORT
from search.cluster.tune_parts import Disposable
from search.storage.tables import UNFINISHED, EpochRow
from search.study.study import Study
from search.views.trackers.tracking import Tracking

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class TrackerFeed(Disposable, tune.Callback):
    """Tells the trackers, when Tune's step ends: what came in meanwhile has then been judged by the study."""

    def __init__(self, study: Study, tracking: Tracking):
        self._study, self._tracking = study, tracking
        self._revision = study.store.revision
        self._reports: list[tuple[int, str]] = []

    def on_trial_result(self, iteration: int, trials: list, trial: "Trial", result: dict, **_: Any) -> None:
        self._reports.append((trial.config["number"], result[REPORT]))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tell()

    def tell(self) -> None:
        """Tell what has not been told."""
        store = self._study.store
        reports, self._reports = self._reports, []
        for number, text in reports:
            trial, report = store.trial(number), json.loads(text)
            if report is not None and report["epoch"] <= trial.epochs:  # else it came after an interruption
                self._tracking.epoch(trial, EpochRow.of_report(number, report))
        if store.revision != self._revision:
            for trial in store.changed_since(self._revision):
                if trial.state not in UNFINISHED:
                    self._tracking.end(trial)
            self._revision = store.revision


@contextmanager
def tracked(study: Study, say: Callable[[str], None], on_note: Callable[[str], None]) -> Iterator[TrackerFeed]:
    """Let the trackers that the experiment names follow the study for the time of the block.

    Args:
        say: told where their files or runs are.
        on_note: told, from another thread, of one that fails.
    """
    tracking = Tracking(study.store, study.experiment.track, on_note)
    feed = TrackerFeed(study, tracking)
    for line in tracking.notes:
        say(line)
    try:
        yield feed
    finally:
        feed.tell()
        tracking.close()
