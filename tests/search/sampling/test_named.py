"""Optuna's samplers by their names: legal proposals, and nothing that a kill could lose."""

import sys
import warnings
from pathlib import Path

import numpy as np
import optuna
import pytest
from fakes import make_report, make_space, make_study
from optuna.trial import TrialState

from cellseg.cli import EXIT_USER_ERROR
from cellseg.errors import UserError
from search.run import main
from search.sampling.named import OptunaSampler
from search.sampling.protocol import Outcome
from search.space import Choices, Domain, Params, Range, Space, load_space
from search.study.changes import changed_settings
from search.study.choose import make_sampler

NAMES = ("random", "tpe", "gp", "cmaes", "qmc")
SPACES = sorted((Path(__file__).parents[3] / "spaces").glob("*.yaml"))
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


def make(name: str, seed: int = 0, domains=None, start_from=(), metric: str = "m") -> OptunaSampler:
    space = Space(
        metric=metric, trials=20, epochs=9, seed=seed, domains=domains or DOMAINS, start_from=start_from, sampler=name
    )
    sampler = make_sampler(space)
    assert isinstance(sampler, OptunaSampler)
    return sampler


def score(params: Params) -> float:
    return -((np.log10(params["lr"]) + 2) ** 2) - (params["width"] / 64 - 0.5) ** 2


def end(sampler: OptunaSampler, number: int, params: Params) -> None:
    """A third of all trials is pruned, with the value that they had."""
    sampler.report(number, 1, score(params))
    if number % 3 == 2:
        sampler.tell(number, Outcome.PRUNED)
    else:
        sampler.tell(number, Outcome.COMPLETE, score(params))


def run(sampler: OptunaSampler, count: int, workers: int = 1) -> list[Params]:
    """So many trials, ``workers`` side by side."""
    asked: list[Params] = []
    for number in range(count):
        asked.append(sampler.ask(number))
        if number >= workers - 1:
            end(sampler, number - workers + 1, asked[number - workers + 1])
    return asked


def replayed(name: str, asked: list[Params], running: int = 0, seed: int = 0) -> OptunaSampler:
    """A new sampler that is told of these trials, of which the last ones still run."""
    sampler = make(name, seed=seed)
    for number, params in enumerate(asked):
        if number >= len(asked) - running:
            sampler.replay(number, params, None)
        elif number % 3 == 2:
            sampler.replay(number, params, Outcome.PRUNED, epochs=[(1, score(params))])
        else:
            sampler.replay(number, params, Outcome.COMPLETE, value=score(params), epochs=[(1, score(params))])
    return sampler


def check(space: Space, params: Params) -> None:
    """Every active key has a legal value of the right type, and no other key has one."""
    for key, domain in space.domains.items():
        assert (key in params) == space.is_active(key, params), (key, params)
        if key in params:
            assert domain.contains(params[key]), (key, params[key])
            assert type(params[key]) in (bool, int, float, str, type(None)), (key, type(params[key]))
    space.config(params, seed=0)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "gp"])
def test_every_shipped_space_gets_valid_configs_of_every_sampler(name, path):
    _valid_configs(path, name, trials=50)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_shipped_space_gets_valid_configs_of_gp(path):
    _valid_configs(path, "gp", trials=50)


def _valid_configs(path: Path, name: str, trials: int) -> None:
    space = load_space(path, [f"sampler={name}"])
    sampler, rng = make_sampler(space), np.random.default_rng(0)
    outcomes = [Outcome.COMPLETE, Outcome.PRUNED, Outcome.COMPLETE, Outcome.FAILED, Outcome.INFEASIBLE]
    for number in range(trials):
        params = sampler.ask(number)
        check(space, params)
        if number < 3:
            continue
        ended, outcome = number - 3, outcomes[number % len(outcomes)]
        sampler.report(ended, 1, float(rng.random()))
        sampler.tell(ended, outcome, float(rng.random()) if outcome is Outcome.COMPLETE else None)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_proposes_the_same_and_another_one_something_else(name):
    assert run(make(name, seed=3), 13) == run(make(name, seed=3), 13)
    assert run(make(name, seed=3), 4) != run(make(name, seed=4), 4)


@pytest.mark.parametrize("name", NAMES)
def test_a_continued_study_proposes_what_an_uninterrupted_one_would(name):
    whole = make(name, seed=5)
    asked = run(whole, 26, workers=4)  # 23 ended, 3 run
    again = replayed(name, asked, running=3, seed=5)
    for number in range(26, 29):
        assert again.ask(number) == whole.ask(number)


@pytest.mark.parametrize("name", NAMES)
def test_trials_that_run_side_by_side_differ(name):
    sampler = make(name, seed=1)
    run(sampler, 18)
    side_by_side = [tuple(sampler.ask(number).items()) for number in range(18, 26)]
    assert len(set(side_by_side)) == len(side_by_side)


@pytest.mark.parametrize(
    ("name", "metric", "count"),
    [
        ("tpe", "m", 60),
        ("tpe", "loss/validation", 60),
        ("cmaes", "m", 60),
        ("cmaes", "loss/validation", 60),
        ("gp", "m", 25),
    ],
)
def test_samplers_that_learn_get_better_than_random(name, metric, count):
    sign = -1.0 if metric == "loss/validation" else 1.0
    sampler, scores = make(name, seed=1, metric=metric), []
    for number in range(count):
        params = sampler.ask(number)
        scores.append(score(params))
        sampler.report(number, 1, sign * scores[-1])
        sampler.tell(number, Outcome.COMPLETE, sign * scores[-1])
    assert np.mean(scores[2 * count // 3 :]) > np.mean(scores[:10]) + 1


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_pruned_trials_count_with_their_last_value(name):
    sampler, scores = make(name, seed=1), []
    for number in range(60):
        params = sampler.ask(number)
        scores.append(score(params))
        sampler.report(number, 1, -1e3)
        sampler.report(number, 3, scores[-1])
        if number == 0:
            sampler.tell(number, Outcome.COMPLETE, scores[-1])
        else:
            sampler.tell(number, Outcome.PRUNED)
    assert np.mean(scores[40:]) > np.mean(scores[:10]) + 1


def test_a_region_without_memory_is_avoided_by_tpe():
    domains = {"x": Range(low=0.0, high=1.0), "y": Range(low=0.0, high=1.0)}

    def share(outcome: Outcome) -> float:
        hits = []
        for seed in range(3):
            sampler = make("tpe", seed=seed, domains=domains)
            for number in range(60):
                params = sampler.ask(number)
                hits.append(params["x"] > 0.6)
                if hits[-1]:
                    sampler.tell(number, outcome)
                else:
                    sampler.tell(number, Outcome.COMPLETE, params["x"] - abs(params["y"] - 0.5))
        return float(np.mean(hits))

    assert share(Outcome.INFEASIBLE) < 0.75 * share(Outcome.FAILED)


def test_low_discrepancy_starts_at_the_first_trial_and_covers_keys_that_are_not_always_active():
    domains = DOMAINS | {"momentum": Range(low=0.0, high=1.0, when={"optimizer": ("sgd",)})}
    sampler = make("qmc", domains=domains, seed=2)
    asked = [sampler.ask(number) for number in range(64)]
    logs = np.sort([(np.log10(params["lr"]) + 5) / 5 for params in asked])
    assert np.abs(logs - (np.arange(64) + 0.5) / 64).max() < 1 / 64, "one in each of 64 parts"
    momenta = [params["momentum"] for params in asked if "momentum" in params]
    assert len(momenta) == 32
    assert min(momenta) < 0.1 and max(momenta) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_start_configs_come_first_and_are_not_repeated_after_a_kill(name):
    starts = ({"lr": 1e-3}, {"optimizer": "sgd", "momentum": 0.9})
    sampler = make(name, start_from=starts)
    first, second = sampler.ask(0), sampler.ask(1)
    assert first["lr"] == 1e-3
    assert (second["optimizer"], second["momentum"]) == ("sgd", 0.9)
    again = make(name, start_from=starts)
    again.replay(0, first, None)
    assert again.ask(1) == second
    assert again.ask(2)["lr"] != 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_one_range_is_a_space_too(name):
    sampler = make(name, domains={"lr": Range(low=1e-5, high=1.0, log=True)})
    for number in range(15):
        params = sampler.ask(number)
        assert 1e-5 <= params["lr"] <= 1
        sampler.tell(number, Outcome.COMPLETE, -abs(np.log(params["lr"])))


def test_no_trial_is_left_behind_where_all_were_told():
    sampler = make("tpe")
    run(sampler, 14)
    assert not sampler.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert [trial.user_attrs["trial"] for trial in sampler.study.trials] == list(range(14))
    assert not sampler.prepare(3)


# In a study


@pytest.mark.parametrize("name", NAMES)
def test_a_study_that_is_killed_goes_on_with_the_same_proposals(name, tmp_path):
    def train(study, count: int) -> None:
        for _ in range(count):
            proposal = study.propose()
            assert proposal is not None
            for epoch in range(1, 5):
                value = -abs(np.log(proposal.config["optim.lr"] / 2e-3)) + epoch / 10
                if not study.report(proposal.number, make_report(epoch, value)):
                    break
            else:
                study.end(proposal.number, "epochs")

    settings = {"trials": 20, "sampler": name, "seed": 3}
    whole = make_study(tmp_path, "whole", **settings)
    train(whole, 18)
    train(make_study(tmp_path, "killed", **settings), 14)
    again = make_study(tmp_path, "killed", **settings)
    train(again, 4)
    assert [row.params for row in again.rows] == [row.params for row in whole.rows]
    assert [row.state for row in again.rows] == [row.state for row in whole.rows]


def test_another_sampler_is_a_change_that_is_named():
    before, after = make_space(), make_space(sampler="tpe")
    assert before.fingerprint != after.fingerprint
    assert changed_settings(before.to_json(), after) == "sampler auto -> tpe"
    assert changed_settings(after.to_json(), before) == "sampler tpe -> auto"


def test_auto_is_what_studies_of_former_versions_had():
    assert make_space(sampler="auto").fingerprint == make_space().fingerprint == "042948b5c320ac4d"
    assert "sampler" not in make_space().to_json()


def test_a_sampler_that_is_unknown_is_reported_with_the_nearest():
    with pytest.raises(UserError, match=r"sampler: must be 'auto', .*, but got 'tep'\. Did you mean 'tpe'\?"):
        make_space(sampler="tep")


def test_cmaes_without_numbers_is_refused():
    space = {"augment.preset": {"choices": ["flips", "color"]}, "model.weights": "none"}
    space["augment.strength"] = {"low": 0.1, "high": 0.9, "when": {"augment.preset": "color"}}
    with pytest.raises(UserError, match="sampler: cmaes must have ranges of numbers that every trial has"):
        make_space(space=space, sampler="cmaes")
    assert make_space(space=space, sampler="tpe").sampler == "tpe"


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_package_that_is_missing_is_named_before_anything_is_done(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    results = tmp_path / "results"
    arguments = [str(SPACES[-1]), "--set", "sampler=cmaes", "--results", str(results), *option]
    assert main(arguments) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert "sampler: cmaes needs the package cmaes, but got none that can be imported" in told
    assert "pip install cmaes" in told
    assert not results.exists()


def test_a_description_tells_of_a_sampler_that_was_chosen():
    assert "sampler: tpe, one of Optuna's" in make_space(sampler="tpe").describe()
    assert not any("sampler" in line for line in make_space().describe())
