"""Scaling is told from simulated runs at several numbers of workers, and the driver's events are timed."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import proposal, scaling, search_efficiency
from benchmarks.lcbench import EPOCHS, Curve
from benchmarks.policies import POLICIES
from benchmarks.simulation import Run
from cellseg.cli import run_command
from search.space import Range


class Curves:
    """A surrogate of one task: curves rise to at most 100, the higher the nearer x is to 0.3."""

    tasks = ("1", "2")

    def __init__(self):
        self.domains = {"x": Range(low=0.0, high=1.0)}

    def curve(self, task, params) -> Curve:
        epochs = np.arange(1, EPOCHS + 1)
        accuracy = 100 * (1 - (params["x"] - 0.3) ** 2) * (1 - 1 / (1 + epochs))
        return Curve(accuracy=accuracy, cross_entropy=-accuracy, seconds=np.full(EPOCHS, 2.0))


def row(workers, seed, seconds, *, policy="ours", target=3640) -> scaling.Reached:
    epochs = None if seconds is None else seconds * workers
    return scaling.Reached(policy, workers, "task", seed, target, seconds, epochs, trials=5)


def test_a_run_comes_to_a_goal_at_the_first_epoch_that_shows_it():
    run = Run(best=np.array([1.0, 5.0, 5.0, 7.0]), seconds=np.array([2.0, 3.0, 3.0, 9.0]), num_trials=2)
    assert scaling.reached(run, 5.0) == (3.0, 2)
    assert scaling.reached(run, 7.5) is None


def test_speedup_is_the_median_of_pairs_over_the_fewest_workers():
    rows = [row(8, 0, 100), row(8, 1, 200), row(8, 2, 300), row(64, 0, 50), row(64, 1, 40), row(64, 2, 100)]
    few, many = scaling.summarize(rows)
    assert (few["workers"], few["seconds"], few["speedup"], few["efficiency"]) == (8, 200, 1.0, 1.0)
    assert (many["seconds"], many["speedup"], many["reached"]) == (50, 3.0, 1.0)
    assert many["efficiency"] == pytest.approx(3 / 8)


def test_runs_that_do_not_arrive_are_the_slowest_and_give_no_speedup():
    few, many = scaling.summarize([row(8, 0, None), row(8, 1, 90), row(64, 0, 10), row(64, 1, 30)])
    assert (few["reached"], few["seconds"]) == (0.5, None)
    assert many["speedup"] == 3.0
    (alone,) = scaling.summarize([row(8, 0, None)])
    assert (alone["seconds"], alone["speedup"], alone["efficiency"], alone["reached"]) == (None, None, None, 0.0)


def test_more_workers_arrive_sooner():
    makers = {name: POLICIES[name] for name in ("random", "random+asha(grace 3)")}
    told = []
    rows = scaling.measure(Curves(), makers, ["task"], seeds=3, workers=[2, 32], budget=20_000, tell=told.append)
    assert len(rows) == 2 * 3 * 2 * 2 and len(told) == 2 * 3 * 2
    summary = {(row["policy"], row["target"], row["workers"]): row for row in scaling.summarize(rows)}
    for name in makers:
        assert summary[name, 3640, 32]["seconds"] < summary[name, 3640, 2]["seconds"]
        assert summary[name, 36_400, 2]["epochs"] >= summary[name, 3640, 2]["epochs"]


def test_a_run_that_is_too_long_ends_unfinished(monkeypatch):
    monkeypatch.setattr(scaling, "target", lambda surrogate, task, budget: 200.0)
    rows = scaling.measure(Curves(), {"random": POLICIES["random"]}, ["task"], seeds=1, workers=[4], budget=10)
    assert {row.seconds for row in rows} == {None}
    assert rows[0].trials == scaling.LENGTHS_EACH * 4 + 4


def test_the_command_tells_what_is_wrong_at_once_or_writes_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search_efficiency, "open_surrogate", lambda folder: Curves())

    def run(arguments):
        return run_command(scaling._parser(), scaling._command, arguments)

    assert run(["--data", str(tmp_path), "--tasks", "3", "--policies", "best", "--workers", "8,0,x"]) == 2
    assert capsys.readouterr().err.count("must be") == 4

    file = tmp_path / "out.json"
    options = ["--tasks", "1", "--seeds", "1", "--workers", "8,4", "--policies", "random+asha(grace 3)"]
    assert run(["--data", str(tmp_path), "--json", str(file), *options]) == 0
    record = json.loads(file.read_text())
    assert [entry["workers"] for entry in record["summary"]] == [4, 4, 8, 8]
    assert record["versions"]["optuna"] and record["hardware"]["cores"] >= 1
    assert "speedup" in capsys.readouterr().out


def test_the_events_of_a_study_are_timed_on_tables_of_that_size(tmp_path: Path):
    study = proposal.finished_study(tmp_path / "study", trials=6, further=2)
    assert study.num_finished == 6 and not study.is_over
    assert len(study.store.epochs()) == sum(row.epochs for row in study.rows) > 0
    times = proposal.seconds_per_event(trials=3, events=2)
    assert times.keys() == {"start", "report", "end", "write"}
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
