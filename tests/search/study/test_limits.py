"""What ends a study before its trials are done, told by a clock of the test's own."""

from dataclasses import replace

import pytest
from fakes import finish, make_report, make_study, told
from spacefiles import HEAD, LR, parse, problems_of

from search.space import Limits, load_space
from search.storage.store import StudyStore
from search.study.limits import Stopwatch, Usage, first_reached

NOTHING = Usage(hours=0.0, gpu_hours=0.0, best=None, stale_trials=0)


class Clock:
    """Stands still until it is told."""

    def __init__(self):
        self.seconds = 1e6

    def __call__(self) -> float:
        return self.seconds

    def pass_hours(self, hours: float) -> None:
        self.seconds += 3600 * hours


@pytest.fixture
def clock() -> Clock:
    return Clock()


def train(study, *values: float, ending: str | None = "epochs", seconds: float = 0.5) -> int:
    """A trial that reports these values, and ends if it is given an ending; its number."""
    number = study.propose().number
    for epoch, value in enumerate(values, start=1):
        last = told(ending) if epoch == len(values) else None
        study.report(number, make_report(epoch, value, ending=last) | {"seconds": seconds})
    if ending is not None:
        finish(study, number, ending)
    return number


@pytest.mark.parametrize(
    ("limits", "usage", "reached"),
    [
        ({}, NOTHING, None),
        ({"hours": 2}, {"hours": 1.99}, None),
        ({"hours": 2}, {"hours": 2.0}, "limits.hours: 2 h of wall-clock time used"),
        ({"gpu_hours": 0.5}, {"gpu_hours": 0.49, "hours": 9}, None),
        ({"gpu_hours": 0.5}, {"gpu_hours": 0.5}, "limits.gpu_hours: 0.5 GPU-hours used"),
        ({"target": 0.8}, {"best": 0.79}, None),
        ({"target": 0.8}, {"best": None}, None),
        ({"target": 0.8}, {"best": 0.8}, "limits.target: segm/AP50 reached 0.8000, target 0.8"),
        ({"plateau_trials": 3}, {"stale_trials": 2}, None),
        ({"plateau_trials": 3}, {"stale_trials": 3}, "limits.plateau_trials: 3 trials in a row without a new best"),
        ({"hours": 2, "target": 0.8}, {"best": 0.9, "hours": 1}, "limits.target: segm/AP50 reached 0.9000, target 0.8"),
    ],
)
def test_a_limit_is_reached_when_as_much_is_used(limits, usage, reached):
    usage = (
        usage
        if isinstance(usage, Usage)
        else Usage(**{"hours": 0, "gpu_hours": 0, "best": None, "stale_trials": 0} | usage)
    )
    found = first_reached(Limits(**limits), "segm/AP50", usage)
    assert (None if found is None else str(found)) == reached


@pytest.mark.parametrize(("best", "reached"), [(0.6, False), (0.5, True), (0.4, True)])
def test_a_loss_reaches_its_target_from_above(best, reached):
    usage = Usage(hours=0, gpu_hours=0, best=best, stale_trials=0)
    assert (first_reached(Limits(target=0.5), "loss/validation", usage) is not None) == reached


def test_a_stopwatch_counts_from_start_to_stop_over_what_was_before(clock):
    watch = Stopwatch(clock, before=100.0)
    clock.seconds += 5
    assert watch.seconds == 100.0
    watch.start()
    clock.seconds += 5
    watch.start()
    assert watch.seconds == 105.0
    watch.stop()
    clock.seconds += 5
    assert watch.seconds == 105.0
    watch.start()
    clock.seconds += 1
    assert watch.seconds == 106.0


def test_at_the_end_of_its_time_a_search_starts_nothing_and_stops_what_runs(tmp_path, clock):
    study = make_study(tmp_path, clock=clock, limits={"hours": 2})
    train(study, 0.5)
    running = train(study, 0.6, ending=None)
    clock.pass_hours(1.99)
    assert not study.must_stop and not study.is_over
    clock.pass_hours(0.01)
    assert study.must_stop and study.is_over and study.abort_reason is None, "without any event"
    assert study.propose() is None
    assert study.interrupt() == [running]
    row = StudyStore.open(study.store.folder).trial(running)
    assert (row.state, row.metric) == ("INTERRUPTED", 0.6)
    assert row.reason == "the search was stopped by limits.hours: 2 h of wall-clock time used"
    assert study.leaderboard[0].number == running, "its best checkpoint counts"


def test_a_study_that_reached_a_limit_is_over_until_the_limit_is_raised(tmp_path, clock):
    study = make_study(tmp_path, clock=clock, limits={"hours": 2})
    running = train(study, 0.6, ending=None)
    clock.pass_hours(2)
    study.interrupt()
    clock.pass_hours(24)
    again = make_study(tmp_path, clock=clock, limits={"hours": 2})
    assert (again.is_over, again.limits.reached.setting) == (True, "limits.hours")
    assert again.propose() is None
    raised = make_study(tmp_path, clock=clock, limits={"hours": 3})
    assert not raised.is_over
    assert raised.propose().number == running, "it goes on where it was"
    raised.start()
    clock.pass_hours(0.99)
    assert not raised.must_stop, "the night between the two does not count"
    clock.pass_hours(0.02)
    assert raised.must_stop


def test_a_killed_search_has_counted_its_time_until_the_last_event(tmp_path, clock):
    study = make_study(tmp_path, clock=clock, limits={"hours": 2})
    number = study.propose().number
    study.start()
    clock.pass_hours(1.5)
    study.report(number, make_report(1, 0.5))
    clock.pass_hours(0.25)
    killed = StudyStore.open(study.store.folder)
    assert killed.wall_seconds == pytest.approx(1.5 * 3600)
    again = make_study(tmp_path, clock=clock, limits={"hours": 2})
    assert again.limits.usage.hours == pytest.approx(1.5)


def test_time_is_counted_without_limits_too(tmp_path, clock):
    study = make_study(tmp_path, clock=clock)
    study.propose()
    study.start()
    clock.pass_hours(5)
    study.interrupt()
    assert not study.is_over
    assert make_study(tmp_path, clock=clock, limits={"hours": 4}).is_over


def test_preparing_a_study_takes_none_of_its_time(tmp_path, clock):
    study = make_study(tmp_path, clock=clock, limits={"hours": 2})
    clock.pass_hours(3)
    assert study.propose() is not None


def test_gpu_hours_count_each_epoch_at_the_share_it_had(tmp_path):
    settings = {"limits": {"gpu_hours": 100}, "resources": {"cpu": 1, "gpu": 0.5}}
    study = make_study(tmp_path, **settings)
    train(study, 0.1, 0.2, ending=None, seconds=3600)
    study.interrupt()
    whole = make_study(tmp_path, **settings | {"resources": {"cpu": 1, "gpu": 1}})
    assert whole.limits.usage.gpu_hours == pytest.approx(1.0), "two hours of half a GPU, as before"
    number = whole.propose().number
    whole.report(number, make_report(3, 0.3) | {"seconds": 3600})
    assert whole.limits.usage.gpu_hours == pytest.approx(2.0)
    assert StudyStore.open(whole.store.folder).trial(number).gpu_seconds == pytest.approx(2 * 3600)


def test_epochs_of_older_tables_cost_what_one_costs_now(tmp_path):
    settings = {"limits": {"gpu_hours": 100}, "resources": {"cpu": 1, "gpu": 0.5}}
    study = make_study(tmp_path, **settings)
    train(study, 0.1, 0.2, seconds=3600)
    study.store.put_trial(replace(study.store.trial(0), gpu_seconds=None))
    assert study.limits.usage.gpu_hours == pytest.approx(1.0)


def test_waiting_for_a_machine_takes_none_of_its_time(tmp_path, clock):
    study = make_study(tmp_path, clock=clock, limits={"hours": 2})
    number = study.propose().number
    clock.pass_hours(3)
    assert not study.must_stop, "it is proposed, but runs nowhere"
    study.start()
    clock.pass_hours(1.99)
    study.report(number, make_report(1, 0.5))
    assert not study.must_stop
    clock.pass_hours(0.02)
    assert study.must_stop


def test_gpu_hours_are_those_of_all_trials_with_a_share_of_a_gpu(tmp_path):
    settings = {"limits": {"gpu_hours": 3}, "resources": {"cpu": 1, "gpu": 0.5}}
    study = make_study(tmp_path, **settings)
    train(study, 0.1, 0.2, seconds=3600)
    train(study, 0.3, ending="non-finite", seconds=3600)
    assert study.limits.usage.gpu_hours == pytest.approx(1.5), "failed trials use a GPU too"
    running = train(study, 0.4, 0.5, ending=None, seconds=3600)
    assert not study.must_stop
    study.report(running, make_report(3, 0.6) | {"seconds": 3600.0})
    assert study.limits.reached.setting == "limits.gpu_hours"
    assert make_study(tmp_path, **settings).is_over
    assert not make_study(tmp_path, **settings | {"limits": {"gpu_hours": 4}}).is_over


def test_the_target_is_reached_by_a_trial_that_still_runs(tmp_path):
    study = make_study(tmp_path, limits={"target": 0.8})
    number = train(study, 0.5, 0.7, ending=None)
    assert not study.must_stop
    assert study.report(number, make_report(3, 0.85)), "ASHA lets it go on, the limit does not"
    assert study.must_stop
    study.interrupt()
    assert make_study(tmp_path, limits={"target": 0.8}).is_over
    assert not make_study(tmp_path, limits={"target": 0.9}).is_over


def test_a_plateau_is_so_many_trials_that_count_after_the_best_one(tmp_path):
    study = make_study(tmp_path, trials=40, asha=False, limits={"plateau_trials": 3})
    train(study, 0.3)
    train(study, 0.2)
    train(study, 0.2, ending="pruned")
    train(study, 0.5)
    assert study.limits.usage.stale_trials == 0
    train(study, 0.4)
    train(study, 0.1, ending="bug")
    train(study, ending="out-of-memory")
    assert (study.limits.usage.stale_trials, study.must_stop) == (2, False), "a failure does not count"
    train(study, 0.5, ending="pruned")
    assert study.must_stop, "an equal value is no new best"
    assert make_study(tmp_path, trials=40, asha=False, limits={"plateau_trials": 3}).is_over
    assert not make_study(tmp_path, trials=40, asha=False, limits={"plateau_trials": 4}).is_over


def test_there_is_no_plateau_while_the_best_trial_runs(tmp_path):
    study = make_study(tmp_path, trials=40, asha=False, limits={"plateau_trials": 2})
    best = train(study, 0.9, ending=None)
    for _ in range(4):
        train(study, 0.1)
    assert not study.must_stop
    study.end(best, "epochs")
    train(study, 0.1)
    assert not study.must_stop
    train(study, 0.1)
    assert study.must_stop


def test_a_best_trial_that_failed_later_still_has_ended(tmp_path):
    study = make_study(tmp_path, trials=40, asha=False, limits={"plateau_trials": 1})
    train(study, 0.9, ending="non-finite")
    assert not study.must_stop
    train(study, 0.1)
    assert study.must_stop


def test_trials_without_any_value_are_a_plateau(tmp_path):
    study = make_study(tmp_path, trials=40, limits={"plateau_trials": 2})
    train(study, ending="out-of-memory")
    assert not study.must_stop
    train(study, ending="out-of-memory")
    assert study.must_stop


def test_what_trials_report_after_a_limit_does_not_lift_it(tmp_path):
    study = make_study(tmp_path, trials=40, asha=False, limits={"plateau_trials": 1})
    running = train(study, 0.1, ending=None)
    train(study, 0.5)
    train(study, 0.4)
    study.report(running, make_report(2, 0.9))
    assert study.must_stop


def test_a_search_without_limits_has_none(tmp_path, clock):
    study = make_study(tmp_path, clock=clock)
    train(study, 0.9)
    clock.pass_hours(1000)
    assert study.limits.reached is None
    assert study.limits.describe() == ""


def test_the_watch_says_how_much_is_used_and_what_ended_the_search(tmp_path, clock):
    limits = {"hours": 2, "gpu_hours": 5, "target": 0.9, "plateau_trials": 9}
    study = make_study(tmp_path, clock=clock, asha=False, limits=limits, resources={"gpu": 1})
    train(study, 0.5, seconds=900)
    train(study, 0.4, seconds=900)
    clock.pass_hours(0.75)
    used = "0.75 of 2 h, 0.50 of 5 GPU-hours, 1 of 9 trials without a new best"
    assert study.limits.describe() == used
    train(study, 0.95, seconds=0)
    assert study.limits.describe().endswith(", ended by limits.target: segm/AP50 reached 0.9500, target 0.9")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("limits: {hours: 0}", "limits.hours: must be greater than 0, but got 0"),
        ("limits: {hours: .inf}", "limits.hours: must be a finite number, but got inf"),
        ("limits: {gpu_hours: -1, hours: 1}", "limits.gpu_hours: must be greater than 0, but got -1"),
        ("limits: {target: high}", "limits.target: must be a valid number, but got 'high'"),
        ("limits: {plateau_trials: 0}", "limits.plateau_trials: must be greater than or equal to 1, but got 0"),
        ("limits: {plateau_trials: 1.5}", "limits.plateau_trials: must be a valid integer, but got 1.5"),
        ("limits: {hour: 1}", "Did you mean 'limits.hours'?"),
        ("limits:", "limits: must be a mapping, but got nothing"),
        (
            "limits: {gpu_hours: 5}",
            "limits.gpu_hours: needs resources.gpu > 0, or there is nothing to count, but got no",
        ),
        (
            "limits: {gpu_hours: 5}\nresources: {cpu: 2}",
            "needs resources.gpu > 0, or there is nothing to count, but got gpu=0",
        ),
    ],
)
def test_a_limit_that_cannot_be_is_refused(text, problem):
    (found,) = problems_of(f"{HEAD}{text}\nspace:\n{LR}")
    assert problem in found


def test_limits_stand_in_the_plan_and_can_be_set_on_the_command_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(HEAD + "limits: {target: 0.85}\nresources: {gpu: 1}\nspace:\n" + LR)
    space = load_space(path, ["limits.hours=8", "limits.gpu_hours=100", "limits.plateau_trials=40"])
    assert (
        "limits: 8 h of wall-clock, 100 GPU-hours, segm/AP50 of at least 0.85, 40 trials in a row without a new best"
        in space.describe()
    )
    assert load_space(path, ["limits.target=null"]).limits == Limits()


def test_limits_may_change_when_a_study_is_continued():
    text = HEAD + "space:\n" + LR
    assert parse("limits: {hours: 8}\n" + text).fingerprint == parse(text).fingerprint


def test_a_plateau_is_counted_in_the_order_in_which_trials_ended(tmp_path):
    """Trial 0, the best one, ended last: after a restart, no trial is stale."""
    settings = {"trials": 40, "asha": False, "limits": {"plateau_trials": 9}}
    study = make_study(tmp_path, **settings)
    for value in (0.9, 0.1, 0.2, 0.3):
        train(study, value)
    for number, minute in ((1, 1), (3, 2), (0, 3), (2, 4)):
        ended = f"2026-01-01T00:{minute:02d}:00+00:00"
        study.store.put_trial(replace(study.store.trial(number), ended=ended))
    assert make_study(tmp_path, **settings).limits.usage.stale_trials == 1, "only trial 2 ended after trial 0"
