"""The measurement of slot time: its arithmetic, and all of it at toy size."""

import json

import pytest

from benchmarks.overhead import TARGETS, Timing, judge, main


def test_slot_seconds_count_every_slot_and_what_is_paid_once():
    assert Timing(slots=2, wall=30.0).per_trial(60) == 1.0


def test_further_trials_do_not_pay_for_the_start_or_the_end():
    timing = Timing(slots=2, wall=100.0, ends=(10.0, 11.0, 11.5, 12.0))
    assert timing.further(2) == 2 * (12.0 - 11.0) / 2
    assert timing.further(3) == 2 * (12.0 - 11.5)


@pytest.mark.parametrize(
    ("slots", "trials", "wall", "efficiency"), [(2, 200, 100.0, 1.0), (2, 200, 125.0, 0.8), (2, 3, 2.0, 1.0)]
)
def test_efficiency_is_the_ideal_time_by_the_real_one(slots, trials, wall, efficiency):
    assert Timing(slots, wall).efficiency(trials, 1.0) == pytest.approx(efficiency)


def test_targets_are_met_on_their_side_only():
    good = {"ours": 0.5, "ours_further": 0.1, "ours / ray_default": 0.01, "efficiency": 0.9}
    bad = {"ours": 0.51, "ours_further": 0.2, "ours / ray_default": 0.06, "efficiency": 0.84}
    assert good.keys() == bad.keys() == TARGETS.keys()
    assert all(judged["met"] for judged in judge(good).values())
    assert not any(judged["met"] for judged in judge(bad).values())


@pytest.mark.parametrize("skip", ["3", "4"])
def test_there_must_be_a_further_trial(tmp_path, capsys, skip):
    assert main(["--json", str(tmp_path / "out.json"), "--trials", "3", "--skip", skip]) == 2
    assert f"less than --trials, but got {skip} of 3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_run_measures_everything(tmp_path):
    file = tmp_path / "overhead.json"
    sizes = [
        "--trials",
        "4",
        "--ray-trials",
        "2",
        "--skip",
        "2",
        "--repeats",
        "1",
        "--sleeping",
        "4",
        "--seconds",
        "0.1",
    ]
    assert main(["--json", str(file), *sizes]) == 0
    result = json.loads(file.read_text())
    assert result["ours"] > result["ours_further"] > 0
    assert result["ray_default"] > 0
    assert 0 < result["efficiency"] < 1
    assert result["ratios"]["ours / ray_default"] == pytest.approx(result["ours"] / result["ray_default"])
    assert len(result["raw"]["ours"][0]["ends"]) == 4
    assert {"ray", "torch"} <= result["versions"].keys()
