"""What the sections of a report read: a study's tables, and the rung at which its trials compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from cellseg.config import gain
from search.cost import Objective
from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow
from search.study.experiment import Experiment
from search.views.standings import StudyTables

MANY = 50
"""Trials that make the values at a rung comparable; of the rungs with as many, the latest is taken."""


@dataclass(frozen=True)
class Source:
    """A study, read once."""

    tables: StudyTables

    @property
    def store(self) -> StudyStore:
        """Its tables."""
        return self.tables.store

    @property
    def experiment(self) -> Experiment:
        """What it carries out."""
        return self.tables.experiment

    @property
    def name(self) -> str:
        """Its name."""
        return self.tables.name

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return self.experiment.metric

    @cached_property
    def rows(self) -> list[TrialRow]:
        """All trials by number."""
        return self.tables.rows

    @cached_property
    def ranked(self) -> list[TrialRow]:
        """Trials with a value, best first."""
        return self.tables.leaderboard

    @cached_property
    def epochs(self) -> Mapping[int, Sequence[EpochRow]]:
        """The epochs of every trial that has any, in order."""
        return self.store.epochs_by_trial()

    @cached_property
    def histories(self) -> Mapping[int, Mapping[int, float]]:
        """Best objective so far by epoch, of every trial that has any: what ASHA compares."""
        objective = Objective.of(self.metric, self.experiment.objective)
        return {row.number: objective.values_by_epoch(row, self.epochs.get(row.number, [])) for row in self.rows}

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are stopped; empty if they never are."""
        return tuple(getattr(self.experiment, "rungs", ()))

    @cached_property
    def common_epoch(self) -> int | None:
        """The latest rung, or the full length, at which many trials compare; the first rung if none has many. None
        without a value."""
        places = (*self.rungs, self.experiment.epochs)
        with_values = [epoch for epoch in places if self.values_at(epoch)]
        many = [epoch for epoch in with_values if len(self.values_at(epoch)) >= MANY]
        return many[-1] if many else with_values[0] if with_values else None

    def values_at(self, epoch: int) -> dict[int, float]:
        """The objective of the trials that reached an epoch, there."""
        return {number: values[epoch] for number, values in self.histories.items() if epoch in values}

    def gain(self, value: float) -> float:
        """The value with the sign that larger is better."""
        return gain(self.metric, value)


def thin(items: Sequence, most: int) -> list:
    """Choose at most so many items, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
