"""Which silent trials are overdue, told by a clock of the test's own."""

import pytest

from search.cluster.stalls import GAP_SECONDS, Stalls
from search.space.settings import StallSettings


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pass_time(stalls: Stalls, clock: Clock, seconds: float) -> dict[int, float]:
    """Look every half minute, as a driver that works does; what was overdue."""
    found: dict[int, float] = {}
    while seconds > 0:
        clock.now += min(30.0, seconds)
        seconds -= 30.0
        found |= stalls.overdue()
    return found


def test_without_any_epoch_nothing_is_overdue(clock):
    stalls = Stalls(StallSettings(), clock=clock)
    stalls.started(1)
    assert stalls.patience(1) is None
    assert not pass_time(stalls, clock, 1e5)


def test_short_epochs_are_given_the_least_time(clock):
    stalls = Stalls(StallSettings(epochs=10, minutes=10), clock=clock)
    stalls.started(1)
    clock.now += 2
    stalls.reported(1, 2.0)
    assert stalls.patience(1) == 600
    assert not pass_time(stalls, clock, 590)
    assert pass_time(stalls, clock, 30) == {1: pytest.approx(620, abs=31)}
    assert not pass_time(stalls, clock, 3000), "it is told once"


def test_a_trial_is_measured_by_its_own_epochs_and_a_new_one_by_the_study_s(clock):
    stalls = Stalls(StallSettings(epochs=4, minutes=1), usual=[100.0, 100.0, 100.0], clock=clock)
    for trial in (1, 2):
        stalls.started(trial)
    clock.now += 500
    stalls.reported(1, 400.0)
    assert stalls.patience(1) == 4 * 500, "an epoch and what goes with it"
    assert stalls.patience(2) == 4 * 100
    stalls.reported(1, 0.0)
    assert stalls.patience(1) == 4 * 500, "a checkpoint that tells of an old epoch says nothing"


def test_one_that_stalled_is_given_twice_as_long_the_next_time(clock):
    stalls = Stalls(StallSettings(epochs=2, minutes=1), usual=[60.0], clock=clock)
    stalls.started(1)
    assert pass_time(stalls, clock, 150)
    stalls.left(1)
    stalls.started(1)
    assert stalls.patience(1) == 240
    assert not pass_time(stalls, clock, 230)
    stalls.ended(1)
    stalls.started(1)
    assert stalls.patience(1) == 120


def test_trials_without_a_process_are_not_watched(clock):
    stalls = Stalls(StallSettings(epochs=2, minutes=1), usual=[1.0], clock=clock)
    stalls.started(1)
    stalls.left(1)
    assert not pass_time(stalls, clock, 1e4)


def test_a_driver_that_was_stopped_itself_blames_nobody(clock):
    stalls = Stalls(StallSettings(epochs=2, minutes=5), usual=[1.0], clock=clock)
    stalls.started(1)
    clock.now += 10 * GAP_SECONDS  # SIGSTOP, a suspended laptop
    assert not stalls.overdue()
    assert not pass_time(stalls, clock, 290)
    assert pass_time(stalls, clock, 60)
