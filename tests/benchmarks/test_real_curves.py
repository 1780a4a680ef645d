"""Searches replayed on a fully trained study: who is answered by what, what is counted, and what a pool is."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.curves.make import REPEAT_EVERY, RandomDraws, publish
from benchmarks.policies import OURS, Ours, RandomSearch
from benchmarks.pool import OnPool, open_pool
from benchmarks.real_curves import REAL_POLICIES, Replay, _command, _parser, replay, summarize
from benchmarks.rungs import JUDGES, Arrivals, Judged, by_both, by_loss, by_value
from benchmarks.rungs import _command as _rungs_command
from benchmarks.rungs import _parser as _rungs_parser
from benchmarks.simulation import simulate
from cellseg.cli import run_command
from cellseg.errors import UserError
from search.sampling.protocol import Outcome
from search.sampling.sampler import StudySampler
from search.space import Choices, Range, Space
from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow

SPACE = Space(
    metric="segm/AP50",
    trials=20,
    epochs=9,
    seed=5,
    asha=None,
    domains={
        "optim.lr": Range(low=1e-4, high=1e-2, log=True),
        "optim.optimizer": Choices(choices=("adamw", "sgd")),
        "optim.momentum": Range(low=0.8, high=0.99, when={"optim.optimizer": ("sgd",)}),
    },
)


def curve(params):
    """Rises to a height that is largest near a learning rate of 1e-3, for adamw."""
    height = 0.9 - 0.2 * abs(np.log10(params["optim.lr"]) + 3) - 0.1 * (params["optim.optimizer"] == "sgd")
    return [height * (1 - 0.5**epoch) for epoch in range(1, SPACE.epochs + 1)]


@pytest.fixture
def folder(tmp_path):
    """A study of 20 trials trained to the end, two of them repeats, and one pruned."""
    store = StudyStore.create(
        tmp_path / "made", {"metric": SPACE.metric, "space": SPACE.to_json(), "command": ["x"], "data_root": "/secret"}
    )
    draws = RandomDraws(SPACE)
    for number in range(21):
        params = draws.ask(number)
        values = curve(params)[: 3 if number == 20 else None]
        store.put_trial(
            TrialRow(
                number=number,
                state="PRUNED" if number == 20 else "COMPLETE",
                params=json.dumps(params),
                config=json.dumps({**params, "data.root": "/secret"}),
                seed=number,
                metric=values[-1],
                best_epoch=len(values),
                epochs=len(values),
                node="a-host",
                started="2026-01-01",
            )
        )
        for epoch, value in enumerate(values, start=1):
            metrics = {SPACE.metric: value, "loss/validation": 1 - value}
            store.add_epoch(EpochRow(trial=number, epoch=epoch, metrics=metrics, seconds=1.0, peak_memory_bytes=7))
    return store.folder


def test_a_pool_holds_each_fully_trained_config_once_and_says_what_it_left_out(folder):
    pool = open_pool(folder)
    assert len(pool.curves) == 18
    assert pool.left_out == {"pruned": 1, "failed or unfinished": 0, "repeats of a config": 2}
    assert pool.cost == 18 * 9
    assert pool.curves[0].accuracy.tolist() == pytest.approx(curve(pool.params[0]))
    worst_of_best = min(pool.finals_P[list(pool.best_quarter)])
    assert len(pool.best_quarter) == 5
    assert sum(pool.finals_P > worst_of_best) == 4


def test_a_loss_is_turned_round(folder):
    store = StudyStore.open(folder)
    metric = "loss/validation"
    store.write_study(store.study | {"metric": metric, "space": replace(SPACE, metric=metric).to_json()})
    pool = open_pool(folder)
    assert pool.curves[0].accuracy.tolist() == pytest.approx([value - 1 for value in curve(pool.params[0])])


def test_too_small_a_pool_is_refused(tmp_path):
    StudyStore.create(tmp_path / "empty", {"metric": SPACE.metric, "space": SPACE.to_json()})
    with pytest.raises(UserError, match="at least 8 different configs that were trained to the end, but got 0"):
        open_pool(tmp_path / "empty")


def test_a_proposal_is_answered_by_the_nearest_untried_entry_which_the_policy_learns(folder):
    pool = open_pool(folder)

    class Wants:
        """Proposes one entry's params again and again."""

        adopted: list = []  # noqa: RUF012 # one test, one instance

        def ask(self, number):
            return pool.params[4]

        def adopt(self, number, params):
            self.adopted.append(params)

        def report(self, number, epoch, value, loss):
            return epoch < 2

    policy = Wants()
    on_pool = OnPool(policy, pool, seed=0)
    first, second = on_pool.ask(0), on_pool.ask(1)
    assert first == {"entry": 4}
    assert second["entry"] != 4
    assert policy.adopted == [pool.params[4], pool.params[second["entry"]]]
    assert pool.params[second["entry"]]["optim.optimizer"] == pool.params[4]["optim.optimizer"]
    assert on_pool.distances[0] == pytest.approx(0, abs=1e-9)
    assert on_pool.distances[1] > 0
    assert [on_pool.report(1, 1, 0.1, 0.0), on_pool.report(1, 2, 0.2, 0.0)] == [True, False]
    assert on_pool.stopped == {second["entry"]: 2}


def test_a_search_ends_when_every_entry_was_tried(folder):
    pool = open_pool(folder)
    on_pool = OnPool(RandomSearch(SPACE.domains, 0, epochs=9), pool, seed=0)
    result = simulate(on_pool, on_pool.curve_of, workers=4, budget=10_000)
    assert result.num_trials == len(pool.curves)
    assert len(result.best) == pool.cost
    assert result.best[-1] == pool.finals_P.max()


def test_ours_learns_the_params_of_the_entry_and_not_its_own_proposal(folder):
    pool = open_pool(folder)
    ours = Ours(SPACE.domains, 0, epochs=9, fixed=SPACE.fixed)
    on_pool = OnPool(ours, pool, seed=0)
    entries = [on_pool.ask(number)["entry"] for number in range(3)]
    on_pool.report(1, 1, 0.5, 0.0)
    assert isinstance(ours._sampler, StudySampler)
    trials = [trial for trial in ours._sampler.study.get_trials() if trial.state.name == "RUNNING"]
    assert [dict(trial.params) for trial in trials] == [pool.params[entry] for entry in entries]
    assert trials[1].intermediate_values == {1: 0.5}


@pytest.mark.parametrize("name", REAL_POLICIES)
def test_every_policy_is_replayed_alike_with_the_same_seed(folder, name):
    if name.startswith("ray "):
        pytest.importorskip("ray")
    pool = open_pool(folder)
    runs = [replay(name, REAL_POLICIES[name], pool, seed, workers=2) for seed in (0, 0)]
    assert runs[0] == runs[1]
    assert runs[0].cost_share is None or runs[0].cost_share == runs[0].cost / pool.cost
    assert runs[0].regret["0.05"] >= runs[0].regret["0.4"] >= -1e-12
    assert runs[0].value["30"] <= runs[0].value["120"] <= pool.finals_P.max()
    if name == "random":
        assert not runs[0].stopped


def run_of(seed, share, reached, stopped):
    return Replay(
        policy=OURS,
        study="s",
        seed=seed,
        cost=None if share is None else 1,
        cost_share=share,
        regret={"0.1": 0.1 * seed},
        value={"30": 0.5},
        reached=reached,
        stopped=stopped,
        mean_distance=0.0,
    )


def test_quantiles_know_runs_that_never_arrived_and_losses_are_of_those_that_came_so_far():
    runs = [run_of(seed, None if seed == 3 else 0.1 * seed, {"1": 4, "3": 2}, {"1": 1, "3": 1}) for seed in range(4)]
    summary = summarize(runs)[OURS]
    assert summary["median_cost_share"] == pytest.approx(0.1)
    assert summary["p90_cost_share"] is None
    assert summary["reached"] == 0.75
    assert summary["first_rung_loss"] == 0.25
    assert summary["loss_by_rung"] == {"1": 0.25, "3": 0.5}
    assert summary["regret"] == pytest.approx({"0.1": 0.15})


def test_the_command_compares_and_writes_what_it_found(folder, tmp_path, capsys):
    out = tmp_path / "out.json"
    policies = "ours;random;random+asha(grace 1)"
    arguments = ["--study", str(folder), "--seeds", "2", "--workers", "2", "--policies", policies, "--json", str(out)]
    assert run_command(_parser(), _command, arguments) == 0
    assert "made: 18 configs of 9 epochs" in (text := capsys.readouterr().out)
    assert "left out: 1 pruned, 2 repeats of a config" in text
    record = json.loads(out.read_text())
    assert {"median_cost_share", "p90_cost_share", "first_rung_loss"} <= record["ours"].keys()
    assert record["random"]["first_rung_loss"] == 0
    assert record["_studies"]["made"]["configs"] == 18
    assert run_command(_parser(), _command, ["--study", str(folder), "--policies", "nobody"]) != 0


def test_one_trial_in_ten_repeats_an_earlier_config():
    draws = RandomDraws(SPACE)
    params = [draws.ask(number) for number in range(2 * REPEAT_EVERY)]
    assert params[9] == params[0]
    assert params[19] == params[10]
    assert sum(a == b for i, a in enumerate(params) for b in params[:i]) == 2
    assert RandomDraws(SPACE).ask(7) == params[7]
    draws.tell(0, Outcome.COMPLETE, 0.5)
    assert draws.ask(7) == params[7]


def test_published_tables_say_nothing_of_the_machine(folder, tmp_path):
    assert publish(folder, tmp_path / "published") == 21
    assert len(open_pool(tmp_path / "published").curves) == 18
    files = [path for path in (tmp_path / "published").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"study.json", "trials.parquet", "part-00000.parquet", "best.yaml"}
    assert not any(word in path.read_bytes() for path in files for word in (b"secret", b"a-host"))
    row = StudyStore.open(tmp_path / "published").trial(0)
    assert (row.node, row.started, row.peak_memory_bytes) == ("", None, None)
    assert "data.root" not in json.loads(row.config)


def test_judges_of_rungs():
    seen = Arrivals(np.array([0.5, 0.2, 0.9, 0.4]), np.array([1.0, 4.0, 3.0, 2.0]))
    assert by_value(seen) == 2
    assert by_value(seen, tie=0.5) == 1, "0.5 is within half a standard deviation"
    assert by_loss(seen) == 1
    assert by_both(seen) == 2


def test_judged_random_search_waits_and_halves_at_the_first_rung():
    def goes_on(**options):
        policy = Judged(SPACE.domains, 0, epochs=9, **options)
        return [policy.report(number, 1, -number, 0.0) for number in range(6)]

    assert goes_on() == [True] + 5 * [False]
    assert goes_on(wait=3) == [True, True] + 4 * [False]
    rising = Judged(SPACE.domains, 0, epochs=9, first=2)
    assert [rising.report(number, 1, value, 0.0) for number, value in enumerate([3, 1, 2])] == [True, False, True]


def test_the_command_on_rungs_compares_all_judges(folder, tmp_path):
    out = tmp_path / "out.json"
    assert (
        run_command(_rungs_parser(), _rungs_command, ["--study", str(folder), "--seeds", "2", "--json", str(out)]) == 0
    )
    record = json.loads(out.read_text())
    assert record["judges"].keys() == JUDGES.keys()
    assert record["judges"]["never"]["small"]["epochs"] == 8 * 9
    assert record["judges"]["grace 1"]["small"]["epochs"] < 8 * 9
    assert record["correlations"]["made"]["value"][-1] == pytest.approx(1)
