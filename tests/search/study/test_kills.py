"""A search that is killed at any moment and continued: no decision is revoked, and nothing is lost or done twice."""

import heapq
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fakes import make_report, make_study

import search.storage.store
from search.storage.tables import EpochRow, TrialRow

EPOCHS, TRIALS = 9, 25
SETTINGS = {"trials": TRIALS, "epochs": EPOCHS, "keep": 3, "asha": {"grace": 1, "reduction": 3}}


class Killed(BaseException):
    """The process is gone, in the middle of whatever it did."""


@dataclass
class World:
    """What outlives a kill beside the tables: checkpoints, and what an onlooker saw in the tables so far.

    A trial's curve follows from its config alone. Values are rounded, so that many are equal.
    """

    folder: Path
    slots: int
    trained: dict[int, int] = field(default_factory=dict)
    """Epochs in the checkpoint of each trial that has one."""
    passed: set[tuple[int, int]] = field(default_factory=set)
    """(trial, rung) of trials that were seen to go on from it."""
    ended: dict[int, TrialRow] = field(default_factory=dict)

    def open(self):
        return make_study(self.folder, "killed", **SETTINGS)

    def run(self) -> bool:
        """Carry the study out until it is over; with workers of unlike speed, in simulated time."""
        study = self.open()
        events: list[tuple[float, int, int]] = []
        now = 0.0
        fresh: dict[int, bool] = {}

        def begin() -> None:
            while len(events) < self.slots and (proposal := study.propose()) is not None:
                number = proposal.number
                repeats = number in self.trained  # the first report of a continued trial is its checkpoint's
                fresh[number] = repeats
                heapq.heappush(events, (now + (0.0 if repeats else self.seconds(number)), number, 0))

        begin()
        while events:
            now, number, _ = heapq.heappop(events)
            if not fresh.pop(number, False):
                self.trained[number] = self.trained.get(number, 0) + 1
            epoch = self.trained[number]
            ending = self.ending(number, epoch)
            with study.store.held():
                goes_on = study.report(number, self.report(study, number, epoch, ending))
                if ending is not None:
                    study.end(number, ending)
            if goes_on:
                heapq.heappush(events, (now + self.seconds(number), number, 0))
            begin()
        return study.is_over

    def report(self, study, number: int, epoch: int, ending: str | None) -> dict:
        rng = np.random.default_rng(number)
        level, losses = rng.uniform(0.2, 0.9), rng.uniform(size=EPOCHS)
        values = [round(level * (1 - math.exp(-e / 2)), 1) for e in range(1, EPOCHS + 1)]
        loss = round(float(losses[epoch - 1]), 1)
        return make_report(epoch, values[epoch - 1], ending=ending, **{"loss/validation": loss}) | {
            "seconds": 2.0 + losses[epoch - 1]
        }

    def ending(self, number: int, epoch: int) -> str | None:
        if number % 7 == 3 and epoch == 3:
            return "patience"  # at a rung, by itself
        return "epochs" if epoch == EPOCHS else None

    def seconds(self, number: int) -> float:
        return 1.0 + (number * 37 % 11) / 10

    def look(self) -> None:
        """Read the tables as an onlooker, and compare them with what was seen before."""
        study = self.open()
        for row in study.rows:
            if row.number in self.ended:
                assert row == self.ended[row.number], "ended for good"
            stopped_at = row.epochs if row.state == "PRUNED" else None
            for rung in study.asha.rungs:
                if (row.number, rung) in self.passed:
                    assert rung != stopped_at, f"trial {row.number} had passed epoch {rung}, and was stopped there"
                if rung <= row.epochs and rung != stopped_at:
                    self.passed.add((row.number, rung))
            if row.state not in {"RUNNING", "INTERRUPTED"}:
                self.ended[row.number] = row
            assert [epoch.epoch for epoch in study.store.epochs(row.number)][: row.epochs] == list(
                range(1, row.epochs + 1)
            )


def carry_out(folder: Path, slots: int, kills: list[int], monkeypatch) -> tuple[World, int]:
    """A study that is killed after so many writes of a file, and again after so many more, and so on; with the number
    of kills that found it at work."""
    world = World(folder, slots)
    write = search.storage.store.write_table
    left = math.inf

    def counted(*arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        write(*arguments, **options)

    monkeypatch.setattr(search.storage.store, "write_table", counted)
    num_killed = 0
    for writes in [*kills, math.inf]:
        left = writes
        try:
            if world.run():
                break
        except Killed:
            num_killed += 1
        left = math.inf
        world.look()
    world.look()
    return world, num_killed


def tables(folder: Path) -> tuple[list[TrialRow], list[EpochRow]]:
    """The tables without times."""
    store = make_study(folder, "killed", **SETTINGS).store
    return [replace(row, started=None, ended=None) for row in store.trials()], store.epochs()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert World(folder, slots=1).run()
    return tables(folder)


def test_the_undisturbed_run_has_what_the_others_are_compared_by(undisturbed):
    rows, _ = undisturbed
    assert {row.state for row in rows} == {"COMPLETE", "PRUNED"}
    assert {row.reason for row in rows if row.state == "COMPLETE"} == {"epochs", "patience"}
    assert {row.epochs for row in rows if row.state == "PRUNED"} >= {1, 3}


@pytest.mark.parametrize("seed", range(6))
def test_with_one_slot_a_killed_search_ends_as_the_undisturbed_one(undisturbed, tmp_path, monkeypatch, seed):
    kills = np.random.default_rng(seed).integers(1, 25, size=12).tolist()
    world, num_killed = carry_out(tmp_path, 1, kills, monkeypatch)
    assert num_killed >= 6
    rows, epochs = tables(tmp_path)
    assert rows == undisturbed[0]
    assert epochs == undisturbed[1]
    assert len(world.ended) == TRIALS


@pytest.mark.parametrize("seed", range(6))
def test_with_several_slots_what_passed_a_rung_has_passed_it_whenever_the_search_is_killed(tmp_path, monkeypatch, seed):
    kills = np.random.default_rng([seed, 4]).integers(1, 20, size=20).tolist()
    world, num_killed = carry_out(tmp_path, 4, kills, monkeypatch)
    assert num_killed >= 10
    assert len(world.ended) == TRIALS
    assert {row.state for row in world.ended.values()} == {"COMPLETE", "PRUNED"}
    assert any(row.state == "COMPLETE" and row.reason == "epochs" for row in world.ended.values())
