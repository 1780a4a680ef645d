"""A study as its views see it: the one that a search drives, or its tables read again."""

import time
from dataclasses import dataclass
from typing import Protocol

from search.storage.store import StudyStore
from search.storage.tables import TrialRow
from search.study.experiment import Experiment
from search.study.limits import LimitWatch, counts
from search.study.load import experiment_from_json


class Standings(Protocol):
    """A study for a view: a :class:`search.study.study.Study`, or :class:`StudyTables`."""

    @property
    def name(self) -> str: ...

    @property
    def experiment(self) -> Experiment: ...

    @property
    def store(self) -> StudyStore: ...

    @property
    def rows(self) -> list[TrialRow]: ...

    @property
    def leaderboard(self) -> list[TrialRow]: ...

    @property
    def num_finished(self) -> int: ...

    @property
    def must_stop(self) -> bool: ...

    @property
    def limits(self) -> LimitWatch: ...


@dataclass(frozen=True)
class StudyTables:
    """A study's tables; unlike a :class:`search.study.study.Study` it writes nothing."""

    experiment: Experiment
    store: StudyStore

    @classmethod
    def of(cls, store: StudyStore) -> "StudyTables":
        """Read the experiment from the study's description.

        Raises:
            UserError: a study of a space that this version does not know.
        """
        return cls(experiment_from_json(store.study["space"], f"{store.folder}/study.json"), store)

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def rows(self) -> list[TrialRow]:
        return self.store.trials()

    @property
    def leaderboard(self) -> list[TrialRow]:
        return self.store.best_trials()

    @property
    def num_finished(self) -> int:
        return sum(counts(self.experiment, row) for row in self.rows)

    @property
    def must_stop(self) -> bool:
        return False

    @property
    def limits(self) -> LimitWatch:
        return LimitWatch(self.experiment, self.store, time.monotonic)
