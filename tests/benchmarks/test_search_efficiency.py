"""The simulation keeps its books, and drives every policy's own objects."""

import json
import statistics
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.lcbench import EPOCHS, Curve, Surrogate
from benchmarks.policies import NAMED, OURS, POLICIES, SYNE_TUNE_POLICIES, VARIANTS, Ours, has_syne_tune
from benchmarks.search_efficiency import _command, _parser, median_cost, target
from benchmarks.simulation import Resume, simulate
from benchmarks.transfer import best_of_search, cost
from cellseg.cli import run_command
from search.space import Range

DOMAINS = {"x": Range(low=0.0, high=1.0), "y": Range(low=1e-3, high=1.0, log=True)}


def curve(params) -> Curve:
    """Rises with the epoch towards 100, the nearer the closer x is to 0.3; an epoch takes as long as y says."""
    epochs = np.arange(1, EPOCHS + 1)
    accuracy = 100 * (1 - (params["x"] - 0.3) ** 2) * (1 - 1 / (1 + epochs))
    return Curve(accuracy=accuracy, cross_entropy=-accuracy, seconds=np.full(EPOCHS, params["y"]))


class Scripted:
    """Stops trial n after n + 1 epochs."""

    def __init__(self):
        self.asked, self.reports = [], []

    def ask(self, number):
        self.asked.append(number)
        return {"x": 0.3, "y": 1.0}

    def report(self, number, epoch, value, loss):
        self.reports.append((number, epoch))
        return epoch < number + 1


def test_a_worker_trains_epoch_by_epoch_and_takes_the_next_trial_at_once():
    policy = Scripted()
    result = simulate(policy, curve, workers=2, budget=9)
    assert policy.reports == [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (2, 3), (3, 2), (4, 1)]
    assert result.seconds.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert result.num_trials == len(policy.asked) == 5
    assert (np.diff(result.best) >= 0).all()


def test_a_search_can_end_at_its_goal():
    whole, short = (simulate(Scripted(), curve, workers=2, budget=9, goal=goal) for goal in (np.inf, 60))
    assert len(short.best) == len(short.seconds) == 4
    assert short.best[-1] >= 60 > short.best[-2]
    assert (short.best == whole.best[:4]).all()


def test_a_stopped_trial_can_be_resumed_where_it_was():
    class Pausing(Scripted):
        """Starts two trials, and pauses them in turn after every epoch."""

        def ask(self, number):
            return super().ask(number) if number < 2 else Resume(len(self.reports) % 2)

        def report(self, number, epoch, value, loss):
            self.reports.append((number, epoch))
            return False

    policy = Pausing()
    result = simulate(policy, curve, workers=1, budget=5)
    assert policy.reports == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]
    assert result.num_trials == 2
    assert result.seconds.tolist() == [1, 2, 3, 4, 5]


def test_a_full_training_ends_whatever_the_policy_says():
    class Endless(Scripted):
        def report(self, number, epoch, value, loss):
            assert epoch <= EPOCHS
            return True

    assert simulate(Endless(), curve, workers=1, budget=2 * EPOCHS + 1).num_trials == 3


@pytest.mark.parametrize("name", [*POLICIES, *SYNE_TUNE_POLICIES])
def test_every_policy_runs_and_gets_somewhere(name):
    pytest.importorskip("ray")
    if name in SYNE_TUNE_POLICIES and not has_syne_tune():
        pytest.skip("needs Syne Tune 0.14")
    make = (POLICIES | SYNE_TUNE_POLICIES)[name]
    results = [simulate(make(DOMAINS, seed), curve, workers=4, budget=600).best for seed in (0, 0, 1)]
    assert results[0][-1] > 95
    assert np.array_equal(results[0], results[1]), "the same seed, the same search"
    assert not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("name", [name for name in NAMED if name != "gp"])
def test_the_named_samplers_of_the_product_are_policies(name):
    make = VARIANTS[f"sampler {name}"]
    results = [simulate(make(DOMAINS, seed), curve, workers=4, budget=200).best for seed in (0, 0, 1)]
    assert np.array_equal(results[0], results[1]), "the same seed, the same search"
    assert not np.array_equal(results[0], results[2])
    assert results[0][-1] > 85


def test_a_search_that_starts_from_the_best_of_another_arrives_earlier():
    surrogate = SimpleNamespace(domains=DOMAINS, curve=lambda task, params: curve(params))
    starts = best_of_search(surrogate, "earlier", seed=5, workers=4, budget=400, top=3)
    finals = [curve(params).accuracy.max() for params in starts]
    assert len(starts) == 3 and finals == sorted(finals, reverse=True)
    goal = finals[0] - 0.1
    costs = [cost(surrogate, "new", 0, workers=4, budget=600, goal=goal, starts=given) for given in (starts, [])]
    assert costs[0] is not None
    assert costs[1] is None or costs[0] < costs[1]


def test_proposals_prepared_ahead_are_as_good_but_do_not_know_the_last_report():
    ahead, asked = (simulate(make(DOMAINS, 0), curve, workers=4, budget=100) for make in (VARIANTS["ours+ahead"], Ours))
    assert min(ahead.best[-1], asked.best[-1]) > 93
    assert not np.array_equal(ahead.best, asked.best)


def test_ours_comes_nearer_to_the_best_config_than_random_search():
    ends = {
        name: [simulate(POLICIES[name](DOMAINS, seed), curve, workers=4, budget=500).best[-1] for seed in range(3)]
        for name in (OURS, "random")
    }
    assert statistics.median(ends[OURS]) > statistics.median(ends["random"])


@pytest.mark.parametrize(
    ("costs", "median"), [([3, 1, 2], 2), ([None, 1, None], None), ([1, 2, None], 2), ([1, None], None)]
)
def test_runs_that_never_arrive_are_the_slowest(costs, median):
    assert median_cost(costs) == median


def test_the_surrogate_gives_learning_curves_and_the_command_compares(shared_data, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    surrogate = Surrogate(shared_data / "lcbench")
    rng = np.random.default_rng(0)
    params = {name: domain.sample(rng) for name, domain in surrogate.domains.items()}
    curve = surrogate.curve("167168", params)
    assert curve.accuracy.shape == curve.seconds.shape == (EPOCHS,)
    assert (curve.accuracy >= 0).all() and (curve.accuracy <= 100).all() and (curve.seconds > 0).all()
    assert target(surrogate, "167168", 520, pool=200) > target(surrogate, "167168", 52, pool=200)

    file = tmp_path / "out.json"
    options = ["--tasks", "189862", "--seeds", "2", "--budget", "300", "--policies", "ours,random"]
    assert (
        run_command(_parser(), _command, ["--data", str(shared_data / "lcbench"), "--json", str(file), *options]) == 0
    )
    record = json.loads(file.read_text())
    assert record["median_cost"].keys() == record["reached"].keys() == {"ours", "random"}
    assert len(record["runs"]) == 4
    assert {"python", "optuna", "ray"} <= record["versions"].keys()
    assert record["hardware"]["cores"] >= 1
    assert "median" in capsys.readouterr().out


def test_unknown_tasks_and_policies_are_told_at_once(shared_data, capsys):
    pytest.importorskip("onnxruntime")
    arguments = ["--data", str(shared_data / "lcbench"), "--tasks", "1,2", "--policies", "best"]
    assert run_command(_parser(), _command, arguments) == 2
    assert capsys.readouterr().err.count("must be among") == 3
