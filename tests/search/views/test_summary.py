"""The lines that sum a study up."""

import pytest
from fakes import finish, make_report, make_study

from search.views.failures import describe_failures, failure_groups
from search.views.summary import (
    best_so_far,
    describe_best,
    describe_cost,
    describe_pruned,
    duration,
    estimate_remaining,
    sparkline,
)


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, "cells", trials=10, asha=False)


def run(study, value, epochs=4, ending="epochs", detail=""):
    number = study.propose().number
    for epoch in range(1, epochs + 1):
        study.report(number, make_report(epoch, value))
    finish(study, number, ending, detail)
    return number


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (200, "3:20 min"), (18420, "5:07 h"), (300_000, "3.5 d")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([1, 1], "▄▄"), ([0, 1], "▁█"), ([0, 1, 2, 3], "▁█"), ([5], "▄")]
)
def test_a_sparkline_ends_with_the_last_value_however_short_it_is(values, line):
    assert sparkline(values, 2) == line


def test_the_best_so_far_never_gets_worse(study):
    for value in (0.2, 0.1, 0.4, 0.3):
        run(study, value)
    assert [best for _, best in best_so_far(study.rows, "segm/AP50")] == [0.2, 0.2, 0.4, 0.4]
    assert "best segm/AP50 0.4000 by t0002" in describe_best(study, 10)


def test_of_a_loss_the_lowest_is_the_best(tmp_path):
    study = make_study(tmp_path, "losses", asha=False, metric="loss/validation", direction="minimize")
    for value in (0.5, 0.7, 0.3):
        number = study.propose().number
        study.report(number, make_report(1, value, metric="loss/validation"))
        study.end(number, "epochs")
    assert [best for _, best in best_so_far(study.rows, "loss/validation")] == [0.5, 0.5, 0.3]


def test_what_is_left_is_as_long_and_as_slow_as_what_was(study):
    assert estimate_remaining(study, 2) is None, "no epoch yet"
    run(study, 0.5)
    left = estimate_remaining(study, 2)
    assert left.trial_seconds == pytest.approx(9 * 4 * 0.5) and left.seconds == pytest.approx(9)
    for _ in range(4):
        run(study, 0.5, epochs=2)
    # five trials had 4 + 4 x 2 epochs
    assert estimate_remaining(study, 1).seconds == pytest.approx(5 * 12 / 5 * 0.5)
    number = study.propose().number
    for epoch in (1, 2, 3):
        study.report(number, make_report(epoch, 0.5))
    assert estimate_remaining(study, 1).seconds == pytest.approx((1 + 4 * 12 / 5) * 0.5), "it has outlived the average"
    assert describe_cost(study, 1).startswith("used 0.00 trial-hours, about 0.00 left, done in 5 s")


def test_a_study_that_is_over_leaves_nothing(tmp_path):
    study = make_study(tmp_path, "one", trials=1, asha=False)
    run(study, 0.5)
    assert estimate_remaining(study, 1) is None
    assert "left" not in describe_cost(study, 1)


def test_pruned_trials_are_counted_by_rung_with_the_last_reason(study):
    assert describe_pruned(study.rows) == ""
    run(study, 0.5, 1, "pruned", "rank 2 of 2 at epoch 1")
    run(study, 0.5, 3, "pruned", "rank 5 of 9 at epoch 3, needed 0.6")
    text = describe_pruned(study.rows)
    assert text.startswith("pruned 1 at epoch 1, 1 at epoch 3; last t0001: rank 5 of 9 at epoch 3, needed 0.6")


def test_failures_stand_together_by_cause_with_what_to_try(study):
    trace = "Traceback (most recent call last):\n  File x\n    f()\nKeyError: 'size {}'"
    for detail in (trace.format(3), trace.format(7)):
        run(study, 0.5, 1, "bug", detail)
    run(study, 0.5, 1, "out-of-memory", "80 GiB")
    (study.store.folder / "logs").mkdir()
    (study.store.folder / "logs" / "t0001.log").write_text("x")
    bug, memory = failure_groups(study.rows, study.store.folder)
    assert (bug.ending, bug.trials, bug.text) == ("bug", (0, 1), "KeyError: 'size 7'")
    assert memory.ending == "out-of-memory" and "train.batch_size" in memory.remedy and memory.log is None
    first, second = describe_failures(study.rows, study.store.folder, 9)
    assert first.startswith("bug x2 (last t0001): KeyError: 'size 7'. Try: ") and first.endswith("logs/t0001.log")
    assert second.startswith("out-of-memory (last t0002): 80 GiB. Try: smaller train.batch_size")
    assert len(describe_failures(study.rows, study.store.folder, 1)) == 1


def test_every_ending_that_is_a_failure_has_a_remedy():
    from search.sampling.protocol import Outcome
    from search.study.study import OUTCOMES
    from search.views.failures import REMEDIES

    bad = {ending for ending, outcome in OUTCOMES.items() if outcome in {Outcome.FAILED, Outcome.INFEASIBLE}}
    assert bad <= set(REMEDIES)
