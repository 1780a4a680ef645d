"""The reasons to stop a search before its trials are done: a limit, trials that keep failing, storage that fails."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from search.study.failures import FailureWatch
from search.study.limits import LimitWatch
from search.study.storage_watch import StorageWatch

if TYPE_CHECKING:
    from search.storage.store import StudyStore
    from search.study.experiment import Experiment


class Stops:
    """Watches limits, failures and storage; a study asks here, and only here, whether it must stop.

    Args:
        store: the study's tables, which keep the time that is spent.
        clock: seconds since any moment; a simulation gives its own.
    """

    def __init__(self, experiment: "Experiment", store: "StudyStore", clock: Callable[[], float]):
        self.limits = LimitWatch(experiment, store, clock)
        self.failures = FailureWatch(experiment.failures_count)
        self.storage = StorageWatch(store)

    @property
    def must_stop(self) -> bool:
        """Whether no trial may start and those that run are to be stopped. Cheap: it may be asked at any time."""
        return self.has_ended or self.storage.error is not None

    @property
    def has_ended(self) -> bool:
        """Whether the same command would not go on: at a limit, or after failures. Where storage failed, it does."""
        return self.failures.reason is not None or self.limits.reached is not None

    def end(self, number: int, ending: str, detail: str, *, failed: bool) -> None:
        """Take in the end of a trial; see :meth:`search.study.failures.FailureWatch.end`."""
        self.limits.end(number)
        self.failures.end(ending, detail, failed=failed)
