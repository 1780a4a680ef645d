"""What trials cost, which of them no other dominates, and an objective that weighs metric and cost."""

import numpy as np
import pytest
from fakes import METRIC, finish, make_report, make_study, told
from spacefiles import HEAD, LR, parse, problems_of

from search.cost import Objective, pareto_front, pareto_trials, seconds_per_epoch, trial_cost
from search.space import ObjectiveSettings
from search.storage.kept import choose_trial
from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow

LOSS = "loss/validation"
PER_SECOND = {"per": "seconds", "doubling": 0.05}


def row(number: int = 0, metric: float | None = 0.5, **values) -> TrialRow:
    known = {"state": "COMPLETE", "seconds_per_epoch": 60.0, "parameters": 44_000_000, "peak_memory_bytes": 2 * 2**30}
    return TrialRow(number=number, metric=metric, params="{}", config="{}", seed=0, **known | values)


def train(study, values, *, seconds=(1.0,), ending: str | None = "epochs", **report) -> tuple[int, list[bool]]:
    """A trial that reports these values; epochs beyond ``seconds`` last as long as the last of them."""
    number = study.propose().number
    answers = []
    for epoch, value in enumerate(values, start=1):
        duration = seconds[min(epoch, len(seconds)) - 1]
        answers.append(
            study.report(
                number,
                make_report(
                    epoch,
                    value,
                    metric=study.experiment.metric,
                    ending=told(ending) if epoch == len(values) else None,
                )
                | {"seconds": duration}
                | report,
            )
        )
    if ending is not None:
        finish(study, number, ending)
    return number, answers


def test_costs_are_those_of_the_config_not_of_how_long_it_trained():
    assert trial_cost(row(seconds=9e9, epochs=50), "seconds") == 60.0
    assert trial_cost(row(), "parameters") == 44.0
    assert trial_cost(row(), "memory") == 2.0
    unknown = row(seconds_per_epoch=None, parameters=None, peak_memory_bytes=0)
    assert [trial_cost(unknown, cost) for cost in ("seconds", "parameters", "memory")] == [None] * 3


@pytest.mark.parametrize(
    ("seconds", "typical"),
    [([], None), ([9.0], 9.0), ([9.0, 2.0], 2.0), ([9.0, 2.0, 3.0, 30.0], 3.0), ([0.0], None), ([0.0, 9.0, 2.0], 2.0)],
)
def test_an_epoch_typically_lasts_as_long_as_the_middle_one_without_the_first(seconds, typical):
    assert seconds_per_epoch(seconds) == typical


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(0.5, 1.0)], [0]),
        ([(0.5, 1.0), (0.5, 2.0)], [0]),  # as good and dearer
        ([(0.5, 1.0), (0.6, 1.0)], [1]),  # as dear and better
        ([(0.5, 1.0), (0.6, 2.0)], [0, 1]),
        ([(0.5, 1.0), (0.4, 2.0), (0.6, 3.0)], [0, 2]),
        ([(0.5, 1.0), (0.5, 1.0)], [0, 1]),  # neither is better
        ([(-0.5, 1.0), (-0.9, 0.5)], [1, 0]),
    ],
)
def test_a_front_holds_what_no_other_dominates(points, front):
    assert pareto_front(points) == front


def test_the_front_of_many_points_is_the_definition():
    rng = np.random.default_rng(0)
    points = [tuple(point) for point in rng.integers(0, 12, (200, 2)).tolist()]

    def dominated(point) -> bool:
        return any(other[0] >= point[0] and other[1] <= point[1] and other != point for other in points)

    expected = [index for index, point in enumerate(points) if not dominated(point)]
    assert sorted(pareto_front(points)) == expected


def test_the_front_is_of_trials_that_were_trained_to_their_end():
    rows = [
        row(0, 0.5, seconds_per_epoch=10.0),
        row(1, 0.6, seconds_per_epoch=20.0),
        row(2, 0.9, seconds_per_epoch=1.0, state="PRUNED"),
        row(3, 0.4, seconds_per_epoch=15.0),
        row(4, None, seconds_per_epoch=1.0),
        row(5, 0.9, seconds_per_epoch=None),
    ]
    assert [trial.number for trial in pareto_trials(rows, METRIC, "seconds")] == [0, 1]
    assert [trial.number for trial in pareto_trials(rows, LOSS, "seconds")] == [0, 3]


def test_twice_the_cost_must_be_worth_its_share_of_the_metric():
    objective = Objective(METRIC, "seconds", doubling=0.05)
    cheap = objective.trial_value(row(metric=0.4, seconds_per_epoch=30.0))
    assert objective.trial_value(row(metric=0.4 * 1.05, seconds_per_epoch=60.0)) == pytest.approx(cheap)
    assert objective.trial_value(row(metric=0.4 * 1.05**3, seconds_per_epoch=240.0)) == pytest.approx(cheap)
    assert objective.trial_value(row(metric=0.41, seconds_per_epoch=60.0)) < cheap
    assert objective.exponent == pytest.approx(-0.07, abs=0.001), "that of MnasNet"
    assert Objective(METRIC, "parameters", doubling=1.0).trial_value(row(metric=0.5)) == pytest.approx(0.5 / 44)


def test_of_a_loss_twice_the_cost_must_make_it_smaller():
    objective = Objective(LOSS, "memory", doubling=0.1)
    cheap = objective.trial_value(row(metric=0.4, peak_memory_bytes=2**30))
    assert objective.trial_value(row(metric=0.4 / 1.1, peak_memory_bytes=2**31)) == pytest.approx(cheap)
    assert objective.trial_value(row(metric=0.4, peak_memory_bytes=2**31)) > cheap


def test_without_a_cost_the_objective_is_the_metric():
    assert Objective.of(METRIC, None).trial_value(row(metric=0.4, seconds_per_epoch=None)) == 0.4
    assert Objective.of(METRIC, PER_SECOND) == Objective.of(METRIC, ObjectiveSettings(per="seconds", doubling=0.05))


def test_an_unknown_cost_or_metric_makes_no_objective():
    objective = Objective(METRIC, "seconds")
    assert objective.trial_value(row(seconds_per_epoch=None)) is None
    assert objective.trial_value(row(metric=None)) is None


def test_ranking_pruning_sampler_checkpoints_and_export_use_the_same_objective(tmp_path):
    study = make_study(tmp_path, keep=1, objective={"per": "seconds", "doubling": 0.2})
    cheap, _ = train(study, [0.5], seconds=[1.0])
    dear, answers = train(study, [0.55], seconds=[4.0], ending="pruned")
    assert answers == [False], "0.55 is behind 0.5 at four times the cost"
    assert [trial.number for trial in study.leaderboard] == [cheap, dear]
    assert [trial.metric for trial in study.leaderboard] == [0.5, 0.55], "the tables keep the metric"
    value = 0.55 / 1.2**2
    assert study.asha.rung(1)[dear].value == pytest.approx(value)
    assert study.sampler.study.trials[1].intermediate_values == {1: pytest.approx(value)}
    assert study.sampler.study.best_value == pytest.approx(0.5)
    best = study.store.checkpoint_folder(cheap) / "best"
    best.mkdir(parents=True)
    (best / "checkpoint.json").write_text("{}")
    assert choose_trial(StudyStore.open(study.store.folder), None).number == cheap


def test_a_loss_per_cost_ranks_the_lower_first(tmp_path):
    study = make_study(tmp_path, metric=LOSS, direction="minimize", objective=PER_SECOND)
    train(study, [0.50], seconds=[4.0])
    train(study, [0.52], seconds=[1.0])
    assert [trial.number for trial in study.leaderboard] == [1, 0]
    assert study.sampler.study.best_value == pytest.approx(0.52)


def test_the_typical_epoch_is_in_the_tables(tmp_path):
    study = make_study(tmp_path)
    train(study, [0.1, 0.2, 0.3, 0.4], seconds=[9.0, 1.0, 3.0, 2.0])
    assert StudyStore.open(study.store.folder).trial(0).seconds_per_epoch == 2.0


def test_replay_knows_the_cost_that_a_trial_had_at_each_epoch(tmp_path):
    study = make_study(tmp_path, objective=PER_SECOND)
    train(study, [0.2, 0.3, 0.3, 0.4], seconds=[9.0, 1.0, 3.0, 2.0])
    train(study, [0.3, 0.4, 0.5], seconds=[2.0, 8.0], ending="pruned")
    train(study, [0.6], ending="non-finite")
    running, _ = train(study, [0.3], ending=None)
    study.interrupt()
    again = make_study(tmp_path, objective=PER_SECOND)
    assert again.propose().number == running
    for epoch in study.asha.rungs:
        live, replayed = study.asha.rung(epoch), again.asha.rung(epoch)
        assert {n: arrival.value for n, arrival in live.items()} == {
            n: arrival.value for n, arrival in replayed.items()
        }
    for live, replayed in zip(study.sampler.study.trials, again.sampler.study.trials, strict=True):
        assert (live.state, live.value, live.intermediate_values) == (
            replayed.state,
            replayed.value,
            replayed.intermediate_values,
        )
    for epoch, seconds in ((2, 7.0), (3, 9.0)):
        again.report(running, make_report(epoch, 0.4) | {"seconds": seconds})
    assert again.rows[running].seconds_per_epoch == 8.0, "the first epoch is left out, and it was before the pause"


def test_an_epoch_of_unknown_cost_is_not_compared_and_the_next_one_is(tmp_path):
    """A search that was killed between a checkpoint and its report learns the epoch's value from the checkpoint."""
    study = make_study(tmp_path, objective=PER_SECOND)
    train(study, [0.9])
    number = study.propose().number
    from_checkpoint = {"seconds": 0.0, "parameters": None, "peak_memory_bytes": None}
    assert study.report(number, make_report(1, 0.1) | from_checkpoint)
    assert number not in study.asha.rung(1)
    assert number not in {trial.number for trial in study.leaderboard}
    assert study.report(number, make_report(2, 0.2))
    study.report(number, make_report(3, 0.2))
    assert number in study.asha.rung(3)
    assert number in {trial.number for trial in study.leaderboard}


def test_a_complete_trial_of_unknown_cost_says_nothing_about_its_config(tmp_path):
    study = make_study(tmp_path, objective=PER_SECOND)
    number = study.propose().number
    study.report(number, make_report(1, 0.5) | {"seconds": 0.0})
    study.end(number, "epochs")
    assert study.rows[0].state == "COMPLETE"
    assert study.sampler.study.trials[0].state.name == "FAIL"
    assert make_study(tmp_path, objective=PER_SECOND).sampler.study.trials[0].state.name == "FAIL"


def test_another_objective_is_another_study(tmp_path):
    text = HEAD + "space:\n" + LR
    plain, weighed = parse(text), parse("objective: {per: parameters}\n" + text)
    assert weighed.objective == ObjectiveSettings(per="parameters", doubling=0.05)
    assert weighed.fingerprint != plain.fingerprint
    assert "objective: segm/AP50 per M parameters, twice the cost must make it 5 % better" in weighed.describe()
    make_study(tmp_path, objective=PER_SECOND)
    with pytest.raises(AssertionError):
        make_study(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("objective: {per: money}", "objective.per: must be 'seconds', 'parameters' or 'memory', but got 'money'"),
        ("objective: {doubling: 0.1}", "objective.per"),
        ("objective: {per: seconds, doubling: 0}", "objective.doubling: must be greater than 0, but got 0"),
        ("objective: {per: seconds, doubling: 5}", "objective.doubling: must be less than or equal to 1, but got 5"),
        ("objective: {per: seconds, metric: segm/AP}", "objective.metric: must be a setting"),
        ("objective:", "objective: must be a mapping, but got nothing"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(text, problem):
    (found,) = problems_of(f"{HEAD}{text}\nspace:\n{LR}")
    assert problem in found


def test_the_cost_at_an_epoch_is_the_highest_memory_and_the_typical_duration_until_then():
    peaks, seconds, metrics = (2, 4, None, 1), (9.0, 2.0, 6.0, 1.0), (0.4, 0.3, 0.6, 0.5)
    epochs = [
        EpochRow(
            trial=0, epoch=epoch, metrics={METRIC: metric}, seconds=duration, peak_memory_bytes=peak and peak * 2**30
        )
        for epoch, (peak, duration, metric) in enumerate(zip(peaks, seconds, metrics, strict=True), start=1)
    ]
    at_end = row(peak_memory_bytes=99 * 2**30, seconds_per_epoch=99.0)
    best_so_far = (0.4, 0.4, 0.6, 0.6)
    for per, costs in (("memory", (2, 4, 4, 4)), ("seconds", (9.0, 2.0, 4.0, 2.0))):
        objective = Objective(METRIC, per, doubling=1.0)  # metric / cost
        expected = {epoch: best_so_far[epoch - 1] / cost for epoch, cost in enumerate(costs, start=1)}
        assert objective.values_by_epoch(at_end, epochs) == pytest.approx(expected), per
