"""Who goes on at a rung."""

import sys

import numpy as np
import pytest

from search.study.asha import Asha


@pytest.mark.parametrize(
    ("grace", "reduction", "max_epochs", "rungs"),
    [
        (1, 3, 9, (1, 3)),
        (1, 3, 10, (1, 3, 9)),
        (3, 3, 30, (3, 9, 27)),
        (2, 2, 9, (2, 4, 8)),
        (5, 3, 5, ()),
        (9, 3, 5, ()),
        (1, 3, 1, ()),
    ],
)
def test_rungs_grow_by_the_reduction_and_stay_below_the_full_length(grace, reduction, max_epochs, rungs):
    assert Asha(grace, reduction, max_epochs).rungs == rungs


def test_without_rungs_no_trial_is_stopped():
    asha = Asha(9, 3, 9)
    assert all(asha.report(trial, epoch, -trial).goes_on for trial in range(20) for epoch in range(1, 10))


def test_the_first_arrival_goes_on_and_the_second_only_as_the_better_one():
    asha = Asha(1, 3, 9)
    assert asha.report(0, 1, 0.2).goes_on
    assert not asha.report(1, 1, 0.1).goes_on
    assert asha.report(2, 1, 0.3).goes_on


def test_fewer_than_a_reductionth_are_ahead_of_a_trial_that_goes_on():
    rng = np.random.default_rng(0)
    asha = Asha(1, 3, 9)
    seen: list[float] = []
    for trial, value in enumerate(rng.permutation(200).astype(float)):
        seen.append(value)
        assert asha.report(trial, 1, value).goes_on == (sum(np.array(seen) > value) < len(seen) / 3)


def test_in_the_long_run_one_trial_in_reduction_goes_on():
    rng = np.random.default_rng(1)
    asha = Asha(1, 4, 9)
    went_on = [asha.report(trial, 1, value).goes_on for trial, value in enumerate(rng.uniform(size=2000))]
    assert np.mean(went_on) == pytest.approx(0.25, abs=0.02)


def test_rising_values_all_go_on_and_falling_values_hardly_any():
    rising, falling = Asha(1, 3, 9), Asha(1, 3, 9)
    assert all(rising.report(trial, 1, trial).goes_on for trial in range(9))
    assert sum(falling.report(trial, 1, -trial).goes_on for trial in range(9)) == 1


def test_a_trial_that_skipped_a_rung_never_enters_it_with_a_later_value():
    asha = Asha(1, 3, 30)
    assert asha.report(0, 5, 1.5).goes_on, "epoch 5 is no rung"
    assert not asha.rung(1)
    assert not asha.rung(3)
    assert asha.report(1, 1, 0.6).goes_on, "nobody was at rung 1 before"


def test_other_epochs_than_rungs_always_go_on_and_so_does_the_last():
    asha = Asha(1, 3, 9)
    for trial in range(5):
        asha.report(trial, 1, 0.9)
    assert all(asha.report(9, epoch, 0.0).goes_on for epoch in (2, 4, 8, 9, 10))


def test_rungs_are_judged_each_for_itself():
    asha = Asha(1, 3, 9)
    assert asha.report(0, 1, 0.9).goes_on
    assert not asha.report(1, 1, 0.5).goes_on
    assert asha.report(2, 3, 0.5).goes_on, "the first at epoch 3"


def test_equal_values_neither_all_go_on_nor_all_stop():
    asha = Asha(1, 3, 9)
    went_on = [asha.report(trial, 1, 0.0).goes_on for trial in range(300)]
    assert went_on[0]
    assert sum(went_on) == 100


def test_a_better_value_passes_a_crowd_of_equal_ones():
    asha = Asha(1, 3, 9)
    for trial in range(30):
        asha.report(trial, 1, 0.0)
    assert asha.report(99, 1, 1e-6).goes_on


def test_a_tie_breaker_decides_between_equal_values_and_only_there():
    asha = Asha(1, 3, 9)
    assert asha.report(0, 1, 0.0, tie_breaker=2.0).goes_on
    assert not asha.report(1, 1, 0.0, tie_breaker=3.0).goes_on
    assert asha.report(2, 1, 0.0, tie_breaker=1.0).goes_on
    assert asha.report(3, 1, 0.1, tie_breaker=9.0).goes_on


def test_the_largest_finite_tie_breaker_loses_to_every_other():
    asha = Asha(1, 3, 9)
    assert asha.report(0, 1, 0.0, tie_breaker=1e300).goes_on
    assert not asha.report(1, 1, 0.0, tie_breaker=sys.float_info.max).goes_on
    assert asha.report(2, 1, 0.0, tie_breaker=1e299).goes_on


def test_a_second_report_at_a_rung_replaces_the_first():
    asha = Asha(1, 3, 9)
    assert asha.report(0, 1, 0.5).goes_on
    assert asha.report(0, 1, 0.5).goes_on, "a trial is not measured against itself"
    asha.report(0, 1, 0.1)
    assert [arrival.value for arrival in asha.rung(1).values()] == [0.1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_a_bug_of_the_caller(value):
    asha = Asha(1, 3, 9)
    with pytest.raises(AssertionError):
        asha.report(0, 2, value)
    with pytest.raises(AssertionError):
        asha.replay(0, [(1, value)])


def test_replayed_trials_count_like_those_that_were_reported():
    rng = np.random.default_rng(2)
    live, replayed = Asha(1, 3, 9), Asha(1, 3, 9)
    for trial in range(40):
        history = []
        for epoch in range(1, 10):
            history.append((epoch, round(float(rng.uniform()), 1)))
            by_itself = rng.uniform() < 0.1
            goes_on = live.report(trial, *history[-1], by_itself=by_itself).goes_on
            if by_itself or not goes_on:
                break
        replayed.replay(trial, history, stopped=not by_itself and not goes_on)
    assert all(dict(live.rung(epoch)) == dict(replayed.rung(epoch)) for epoch in live.rungs)
    for trial, value in enumerate(np.linspace(0, 1, 11), start=100):
        assert live.report(trial, 1, value).goes_on == replayed.report(trial, 1, value).goes_on


def test_replay_takes_tie_breakers_and_leaves_out_rungs_that_were_not_reached():
    asha = Asha(1, 3, 30)
    asha.replay(7, [(1, 0.0, 2.5), (2, 0.1, 2.0)])
    assert asha.rung(1)[7].tie_breaker == 2.5
    assert asha.rung(1)[7].went_on
    assert not asha.rung(3)
    assert not asha.report(8, 1, 0.0, tie_breaker=3.0).goes_on


def test_a_decision_tells_rank_and_the_value_that_was_needed():
    asha = Asha(1, 3, 9)
    first = asha.report(0, 1, 0.5)
    assert (first.goes_on, first.rank, first.num_seen, first.needed) == (True, 1, 1, None)
    second = asha.report(1, 1, 0.2)
    assert (second.goes_on, second.rank, second.num_seen, second.needed) == (False, 2, 2, 0.5)
    for trial, value in enumerate((0.4, 0.3), start=2):
        asha.report(trial, 1, value)
    fifth = asha.report(4, 1, 0.1)  # two of five go on: it had to beat the second best
    assert (fifth.goes_on, fifth.rank, fifth.num_seen, fifth.needed) == (False, 5, 5, 0.4)
    assert (fifth.epoch, fifth.value) == (1, 0.1)
    between = asha.report(0, 2, 0.6)
    assert (between.goes_on, between.rank, between.num_seen, between.needed) == (True, None, 0, None)


def test_a_trial_goes_on_exactly_if_it_beats_what_was_needed():
    rng = np.random.default_rng(3)
    asha = Asha(1, 3, 9)
    for trial, value in enumerate(rng.permutation(100).astype(float)):
        decision = asha.report(trial, 1, value)
        assert decision.goes_on == (decision.needed is None or value > decision.needed)
