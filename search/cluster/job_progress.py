"""The progress of a study, told to the record of the job that it runs in."""

import time
from typing import Any

from ray import tune
from ray.exceptions import RayError

from cellseg.names import counted
from search.cluster.job_record import own_job, tell_job
from search.cluster.tune_parts import Disposable
from search.study.study import Study

TELL_SECONDS = 5.0


def describe_progress(study: Study, waits_for: str = "") -> str:
    """Describe in a line how far a study is, and what it waits for, if it does."""
    experiment = study.experiment
    text = f"{study.num_finished} of {counted(experiment.trials, 'trial')}, {study.num_running} running"
    if experiment.is_search and (ranked := study.leaderboard) and ranked[0].metric is not None:
        text += f", best {experiment.metric} {ranked[0].metric:.4f} (t{ranked[0].number:04d})"
    return f"{text}; {waits_for}" if waits_for else text


class JobProgress(Disposable, tune.Callback):
    """Tells the progress at most every :data:`TELL_SECONDS`; does nothing in a search that was not submitted."""

    def __init__(self, study: Study):
        self._study = study
        self._job = own_job()
        self._told = ""
        self._waits_for = ""
        self._next = 0.0

    def wait(self, text: str) -> None:
        """Take in what trials wait for; empty: they do no more."""
        self._waits_for = text

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._job is not None and (now := time.monotonic()) >= self._next:
            self._next = now + TELL_SECONDS
            self.tell()

    def tell(self) -> None:
        """Tell the progress as it is now, if it has changed."""
        if self._job is None or (text := describe_progress(self._study, self._waits_for)) == self._told:
            return
        try:
            tell_job(self._job, self._study.name, str(self._study.store.folder.parent), text)
        except (RayError, OSError, RuntimeError):
            return  # the cluster goes, and the search with it
        self._told = text
