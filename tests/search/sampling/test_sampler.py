"""Proposals, and what the Optuna study says of how trials ended."""

import warnings

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.sampling.proposer import NUM_RANDOM
from search.sampling.protocol import Outcome
from search.sampling.sampler import StudySampler
from search.space import Choices, Domain, Range, Space
from search.study.choose import make_sampler

DOMAINS: dict[str, Domain] = {
    "optimizer": Choices(choices=("sgd", "adamw")),
    "lr": Range(low=1e-5, high=1.0, log=True),
    "momentum": Range(low=0.0, high=1.0, when={"optimizer": ("sgd",)}),
    "beta": Range(low=0.0, high=1.0, when={"optimizer": ("adamw",)}),
    "width": Range(low=8, high=64, step=8, integer=True),
    "only": Choices(choices=("one",)),
}


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make(domains=None, start_from=(), seed=0) -> StudySampler:
    space = Space(metric="m", trials=20, epochs=9, seed=seed, domains=domains or DOMAINS, start_from=start_from)
    sampler = make_sampler(space)
    assert isinstance(sampler, StudySampler)
    return sampler


def score(params) -> float:
    return -((np.log10(params["lr"]) + 2) ** 2) - (params["optimizer"] == "adamw")


def run(sampler: StudySampler, count: int, first: int = 0) -> list[dict]:
    """``count`` trials one after another, every third pruned."""
    asked = []
    for number in range(first, first + count):
        params = sampler.ask(number)
        asked.append(params)
        sampler.report(number, 1, score(params))
        if number % 3 == 2:
            sampler.tell(number, Outcome.PRUNED, reason="worse than others")
        else:
            sampler.tell(number, Outcome.COMPLETE, score(params))
    return asked


def test_proposals_are_complete_legal_and_without_inactive_keys():
    sampler = make()
    for params in run(sampler, 30):
        assert set(params) == {"lr", "optimizer", "width", "only"} | (
            {"momentum"} if params["optimizer"] == "sgd" else {"beta"}
        )
        assert all(DOMAINS[key].contains(value) for key, value in params.items())
    assert [trial.params for trial in sampler.study.trials] == run(make(), 30)


def test_the_same_calls_with_the_same_seed_propose_the_same():
    assert run(make(seed=3), 25) == run(make(seed=3), 25)
    assert run(make(seed=3), 5) != run(make(seed=4), 5)


def test_proposals_get_better_than_random():
    asked = run(make(seed=1), 60)
    assert np.mean([score(params) for params in asked[40:]]) > np.mean([score(params) for params in asked[:10]]) + 1


def test_proposals_for_a_minimised_metric_get_lower_than_random():
    sampler = make_sampler(Space(metric="loss/validation", trials=60, epochs=9, seed=1, domains=DOMAINS))
    assert isinstance(sampler, StudySampler)
    losses: list[float] = []
    for number in range(60):
        losses.append(-score(sampler.ask(number)))
        sampler.report(number, 1, losses[-1])
        if number % 3 == 2:
            sampler.tell(number, Outcome.PRUNED)
        else:
            sampler.tell(number, Outcome.COMPLETE, losses[-1])
    assert np.mean(losses[40:]) < np.mean(losses[:10]) - 1
    assert sampler.study.best_value == min(loss for number, loss in enumerate(losses) if number % 3 != 2)


def test_a_complete_trial_has_its_value_and_a_pruned_one_its_intermediate_values():
    sampler = make()
    for number in range(3):
        sampler.ask(number)
        sampler.report(number, 1, 0.1 + number)
        sampler.report(number, 3, 0.2 + number)
    sampler.tell(0, Outcome.COMPLETE, 0.25)
    sampler.tell(1, Outcome.PRUNED, reason="worse than others at epoch 3")
    sampler.tell(2, Outcome.PRUNED)
    states = [trial.state for trial in sampler.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    assert sampler.study.trials[1].intermediate_values == {1: 1.1, 3: 1.2}
    assert sampler.study.trials[1].user_attrs == {"trial": 1, "reason": "worse than others at epoch 3"}
    assert sampler.study.best_value == 0.25, "the higher values of pruned trials are not best values"


def test_a_failed_trial_teaches_nothing_and_an_infeasible_one_is_a_violated_constraint():
    sampler = make()
    sampler.ask(0)
    sampler.ask(1)
    sampler.tell(0, Outcome.FAILED, reason="loss is not finite")
    sampler.tell(1, Outcome.INFEASIBLE, reason="out of memory")
    failed, infeasible = sampler.study.trials
    assert (failed.state, failed.value) == (TrialState.FAIL, None)
    assert (infeasible.state, infeasible.constraints) == (TrialState.PRUNED, {"memory": 1.0})


def test_a_region_without_memory_is_avoided():
    def share_of_infeasible(outcome: Outcome) -> float:
        hits = []
        for seed in range(4):
            sampler = make({"x": Range(low=0.0, high=1.0), "y": Range(low=0.0, high=1.0)}, seed=seed)
            for number in range(60):
                params = sampler.ask(number)
                too_large = params["x"] > 0.6
                hits.append(too_large)
                if too_large:
                    sampler.tell(number, outcome)
                else:
                    sampler.tell(number, Outcome.COMPLETE, params["x"] - abs(params["y"] - 0.5))
        return float(np.mean(hits))

    assert share_of_infeasible(Outcome.INFEASIBLE) < 0.75 * share_of_infeasible(Outcome.FAILED)


def test_no_trial_is_running_after_it_was_told():
    sampler = make()
    for number, outcome in enumerate(Outcome):
        sampler.ask(number)
        sampler.tell(number, outcome, 0.5 if outcome is Outcome.COMPLETE else None)
    assert not sampler.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    with pytest.raises(KeyError):
        sampler.tell(0, Outcome.FAILED)


@pytest.mark.parametrize(
    ("outcome", "value"),
    [(Outcome.COMPLETE, None), (Outcome.COMPLETE, float("nan")), (Outcome.PRUNED, 0.5), (Outcome.FAILED, 0.5)],
)
def test_a_value_that_does_not_fit_the_outcome_is_a_bug_of_the_caller(outcome, value):
    sampler = make()
    sampler.ask(0)
    with pytest.raises(AssertionError):
        sampler.tell(0, outcome, value)


def test_a_value_that_is_not_finite_is_never_reported():
    sampler = make()
    sampler.ask(0)
    with pytest.raises(AssertionError):
        sampler.report(0, 1, float("nan"))


def test_an_epoch_reported_twice_counts_once():
    sampler = make()
    sampler.ask(0)
    sampler.report(0, 1, 0.5)
    sampler.report(0, 1, 0.6)
    assert sampler.study.trials[0].intermediate_values == {1: 0.5}


def test_start_configs_come_first_and_their_open_keys_are_filled():
    starts = ({"lr": 1e-3}, {"optimizer": "sgd", "momentum": 0.9})
    sampler = make(start_from=starts)
    first, second, third = run(sampler, 3)
    assert first["lr"] == 1e-3
    assert len(first) == 5
    assert (second["optimizer"], second["momentum"]) == ("sgd", 0.9)
    assert third["lr"] != 1e-3


def test_a_start_config_of_a_former_run_is_not_tried_again_but_a_new_one_is():
    starts = ({"lr": 1e-3}, {"lr": 1e-4})
    (before,) = run(make(start_from=starts[:1]), 1)
    sampler = make(start_from=starts)
    sampler.replay(0, before, Outcome.COMPLETE, value=0.5)
    assert sampler.ask(1)["lr"] == 1e-4
    assert sampler.ask(2)["lr"] != 1e-3


def test_parallel_and_finished_params_are_not_proposed_again():
    domains = {"a": Range(low=1, high=5, integer=True), "b": Choices(choices=("x", "y", "z", "w"))}
    sampler = make(domains)
    asked = []
    for number in range(18):
        asked.append(tuple(sampler.ask(number).values()))
        if number >= 4:
            sampler.tell(number - 4, Outcome.COMPLETE, float(asked[number - 4][0]))
    assert len(set(asked)) >= 17, "20 combinations; only the last few may need luck"


def test_an_exhausted_space_repeats_itself_rather_than_hang():
    sampler = make({"a": Choices(choices=(1, 2))})
    asked = run_simple(sampler, 14)
    assert set(asked) == {1, 2}
    assert len(asked) == 14


def run_simple(sampler: StudySampler, count: int) -> list:
    asked = []
    for number in range(count):
        asked.append(sampler.ask(number)["a"])
        sampler.tell(number, Outcome.COMPLETE, float(asked[-1]))
    return asked


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_replayed_trial_looks_like_one_that_was_told(outcome):
    live, replayed = make(), make()
    params = live.ask(0)
    value = 0.4 if outcome is Outcome.COMPLETE else None
    live.report(0, 1, 0.3)
    live.report(0, 2, 0.4)
    live.tell(0, outcome, value, reason="why")
    replayed.replay(0, params, outcome, value=value, epochs=[(1, 0.3), (2, 0.4), (3, float("nan"))], reason="why")
    (a,), (b,) = live.study.trials, replayed.study.trials
    for name in (
        "number",
        "state",
        "value",
        "params",
        "distributions",
        "intermediate_values",
        "user_attrs",
        "constraints",
    ):
        assert getattr(a, name) == getattr(b, name), name


def test_a_continued_study_goes_on_as_if_it_had_not_stopped():
    whole = make(seed=5)
    expected = run(whole, 24)
    second = make(seed=5)
    for number, params in enumerate(expected[:15]):
        pruned = number % 3 == 2
        second.replay(
            number,
            params,
            Outcome.PRUNED if pruned else Outcome.COMPLETE,
            value=None if pruned else score(params),
            epochs=[(1, score(params))],
        )
    assert run(second, 9, first=15) == expected[15:]


def test_an_unfinished_trial_of_a_former_run_is_running_until_told():
    params = make().ask(0)
    sampler = make()
    sampler.replay(7, params, None, epochs=[(1, 0.1)])
    (trial,) = sampler.study.trials
    assert (trial.state, trial.params, trial.intermediate_values) == (TrialState.RUNNING, params, {1: 0.1})
    assert trial.user_attrs["trial"] == 7
    sampler.report(7, 2, 0.2)
    sampler.tell(7, Outcome.COMPLETE, 0.2)
    assert sampler.study.best_params == params


def test_random_proposals_end_when_enough_trials_have_ended():
    sampler = make(seed=2)
    asked = [sampler.ask(number) for number in range(NUM_RANDOM + 5)]
    space = Space(metric="m", trials=20, epochs=9, domains=DOMAINS)
    assert asked == [space.sample(np.random.default_rng([2, number])) for number in range(len(asked))]


def started(seed: int = 0, running: int = 3, **settings) -> StudySampler:
    """A sampler past its random phase, with trials that run: numbers 12 and on."""
    sampler = make(seed=seed, **settings)
    run(sampler, 12)
    for number in range(12, 12 + running):
        sampler.ask(number)
    return sampler


def prepare_all(sampler: StudySampler, count: int) -> int:
    """How many proposals were made until all ``count`` were ready."""
    made = 0
    while sampler.prepare(count):
        made += 1
    return made


def test_proposals_made_ahead_are_those_that_would_have_been_made_when_asked():
    ready, asked = started(), started()
    assert prepare_all(ready, 4) == 4
    numbers = range(15, 19)
    assert [ready.ask(number) for number in numbers] == [asked.ask(number) for number in numbers]
    assert [t.params for t in ready.study.trials] == [t.params for t in asked.study.trials]
    assert ready.ask(19) == asked.ask(19), "nor do they leave anything behind"


def test_who_finds_a_proposal_ready_does_not_wait_for_the_model(monkeypatch):
    sampler = started()
    prepare_all(sampler, 1)
    sampler.tell(12, Outcome.FAILED)  # the slot that came free
    monkeypatch.setattr(sampler._proposer, "propose", lambda rng: pytest.fail("made anew"))
    assert "lr" in sampler.ask(15)


@pytest.mark.parametrize("happens", [lambda s: s.report(12, 9, 0.5), lambda s: s.tell(12, Outcome.FAILED)])
def test_a_result_outdates_what_was_made_ahead(happens):
    ready, asked = started(), started()
    assert prepare_all(ready, 2) == 2
    assert not ready.prepare(2)
    happens(ready)
    happens(asked)
    assert prepare_all(ready, 2) == 2
    assert [ready.ask(15), ready.ask(16)] == [asked.ask(15), asked.ask(16)]


def test_an_epoch_that_the_model_does_not_see_outdates_nothing():
    sampler = started()
    prepare_all(sampler, 2)
    sampler.report(12, 2, 0.5)
    assert not sampler.prepare(2)


def test_proposals_made_ahead_wait_for_no_record_of_the_study():
    sampler = started()
    before = len(sampler.study.trials)
    prepare_all(sampler, 4)
    assert len(sampler.study.trials) == before, "a search that stops now leaves no trial behind"


def test_start_configs_need_no_preparation_and_what_follows_them_is_made_ahead():
    starts = ({"lr": 1e-3}, {"lr": 1e-4})
    sampler = make(start_from=starts)
    assert prepare_all(sampler, 2) == 0
    assert prepare_all(sampler, 3) == 1
    assert [sampler.ask(number)["lr"] for number in range(2)] == [1e-3, 1e-4]
    assert len({sampler.ask(number)["lr"] for number in range(2, 5)}) == 3


def test_outdated_proposals_repeat_none_of_those_made_after_them():
    sampler = make({"a": Range(low=1, high=5, integer=True), "b": Choices(choices=("x", "y", "z", "w"))})
    asked = []
    for number in range(18):
        sampler.prepare(3)  # too little time for all of them
        asked.append(tuple(sampler.ask(number).values()))
        if number >= 4:
            sampler.tell(number - 4, Outcome.COMPLETE, float(asked[number - 4][0]))
    assert len(set(asked)) >= 17, "20 combinations; only the last few may need luck"


def test_a_replayed_study_prepares_the_numbers_that_come_next():
    first = make(seed=5)
    expected = run(first, 12)
    sampler = make(seed=5)
    for number, params in enumerate(expected):
        pruned = number % 3 == 2
        outcome, value = (Outcome.PRUNED, None) if pruned else (Outcome.COMPLETE, score(params))
        sampler.replay(number, params, outcome, value=value, epochs=[(1, score(params))])
    prepare_all(sampler, 1)
    assert sampler.ask(12) == first.ask(12)


def test_a_trial_that_was_pruned_before_its_first_report_has_no_value():
    sampler = make()
    sampler.ask(0)
    sampler.tell(0, Outcome.PRUNED, reason="no epoch in time")
    (trial,) = sampler.study.trials
    assert (trial.state, trial.values) == (TrialState.PRUNED, None)
