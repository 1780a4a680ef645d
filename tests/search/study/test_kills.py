"""A search that is killed at any moment and continued: no decision is revoked, and nothing is lost or done twice."""

import heapq
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fakes import lifelike_ending, lifelike_report, make_report, make_study

import search.storage.store
from search.storage.tables import EpochRow, TrialRow

EPOCHS, TRIALS = 9, 25
SETTINGS = {"trials": TRIALS, "epochs": EPOCHS, "keep": 3, "asha": {"grace": 1, "reduction": 3}}


class Killed(BaseException):
    """The process is gone, in the middle of whatever it did."""


@dataclass
class World:
    """What outlives a kill beside the tables: checkpoints, and what an onlooker saw in the tables so far."""

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
            ending = lifelike_ending(number, epoch, EPOCHS)
            with study.store.held():
                goes_on = study.report(number, lifelike_report(number, epoch, EPOCHS))
                if ending is not None:
                    study.end(number, ending)
            if goes_on:
                heapq.heappush(events, (now + self.seconds(number), number, 0))
            begin()
        return study.is_over

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


def arrivals(study, rung: int) -> dict[int, tuple]:
    return {number: (each.value, each.tie_breaker, each.went_on) for number, each in study.asha.rung(rung).items()}


def test_an_epoch_that_was_written_but_not_judged_counts_nowhere_until_it_is_reported_again(tmp_path, monkeypatch):
    study = make_study(tmp_path)
    for _ in range(2):
        study.propose()
    study.report(0, make_report(1, 0.5))
    study.report(0, make_report(2, 0.6))

    def killed(*_) -> None:
        raise Killed

    monkeypatch.setattr(study.store, "put_trial", killed)
    with pytest.raises(Killed):
        study.report(0, make_report(3, 0.9) | {"seconds": 100.0})
    study.store.flush()
    again = make_study(tmp_path)
    assert [epoch.epoch for epoch in again.store.epochs(0)] == [1, 2, 3]
    assert (again.rows[0].epochs, again.asha.rungs) == (2, (1, 3))
    assert arrivals(again, 3) == {}, "nobody was judged there"
    assert arrivals(again, 1).keys() == {0}
    for _ in range(2):
        again.propose()
    assert again.report(0, make_report(3, 0.9))
    assert again.rows[0].seconds_per_epoch == 0.5
    assert again.rows[0].seconds == 1.5
    assert [epoch.epoch for epoch in again.store.epochs(0)] == [1, 2, 3]


def test_a_trial_that_ended_by_itself_at_a_rung_went_on_there_before_and_after_a_kill(tmp_path):
    """Of equal trials those that went on are ahead: else a tie would be decided otherwise after a kill."""
    study = make_study(tmp_path)
    for _ in range(2):
        study.propose()
    study.report(0, make_report(1, 0.5))
    assert not study.report(1, make_report(1, 0.1, ending="patience"))
    study.end(1, "patience")
    assert arrivals(study, 1)[1][2], "whatever ASHA would have said"
    assert arrivals(make_study(tmp_path), 1) == arrivals(study, 1)
