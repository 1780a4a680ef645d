"""Drivers, trials' processes and machines that are killed at random moments, and the same command again."""

import os
import random
import signal
import time

import pytest

from tests.faults.harness import Onlooker, require_clean, require_whole, tables

pytestmark = pytest.mark.timeout(900)


def seeds(default: int, count: int = 20) -> list:
    return [pytest.param(seed, marks=[pytest.mark.slow] if seed >= default else []) for seed in range(count)]


def test_the_undisturbed_study_has_what_the_others_are_compared_by(undisturbed, expected):
    rows, _ = expected
    require_whole(undisturbed)
    require_clean(undisturbed)
    assert {row.reason for row in rows if row.state == "COMPLETE"} == {"epochs", "patience"}
    assert {row.epochs for row in rows if row.state == "PRUNED"} == {1, 3}
    assert undisturbed.num_repeated() == 0


@pytest.mark.parametrize("seed", seeds(default=3))
def test_a_killed_driver_costs_no_more_than_the_epochs_that_ran(make_bench, expected, seed):
    bench, moments = make_bench(slots=4 if seed % 3 == 2 else 1), random.Random(seed)
    onlooker, trained = Onlooker(bench), 0
    num_kills = 1 if seed < 3 else 3
    for _ in range(num_kills):
        driver = bench.start()
        bench.wait_for_epochs(trained + moments.randint(0, 20 // num_kills), driver)
        time.sleep(moments.uniform(0, 0.2))
        driver.send(signal.SIGKILL)
        driver.wait()
        onlooker.look()
        trained = bench.num_trained()
    bench.finish()
    onlooker.look()
    assert onlooker.lost == []
    require_whole(bench)
    if bench.slots == 1:
        assert tables(bench.store()) == expected
    assert onlooker.num_repeated <= num_kills * bench.slots
    require_clean(bench)


@pytest.mark.parametrize("seed", seeds(default=1))
def test_a_killed_process_of_a_trial_costs_no_more_than_the_epoch_that_ran(make_bench, expected, seed):
    bench, moments = make_bench(), random.Random(seed)
    driver = bench.start()
    for count in sorted(moments.sample(range(1, 25), 3)):
        bench.wait_for_epochs(count, driver)
        time.sleep(moments.uniform(0, 0.1))
        for pid in bench.workers():
            os.kill(pid, signal.SIGKILL)
    assert driver.wait() == 0, driver.output
    require_whole(bench)
    assert tables(bench.store()) == expected
    assert bench.num_repeated() <= 3
    require_clean(bench)


@pytest.mark.parametrize("seed", seeds(default=0))
def test_a_killed_machine_costs_no_more_than_the_epoch_that_ran(make_bench, expected, seed):
    """Its raylet is killed, and so are the processes of trials there; another machine is there to go on."""
    bench, moments = make_bench(settings=("--set", "resources={cpu: 5}")), random.Random(seed)
    assert bench.machines is not None
    first, second = (bench.machines.add(num_cpus=5) for _ in range(2))
    try:
        driver = bench.start()
        bench.wait_for_epochs(moments.randint(1, 20), driver)
        time.sleep(moments.uniform(0, 0.1))
        pid = bench.journal()[-1][3]
        bench.machines.send(first if first.holds(pid) else second, signal.SIGKILL)
        assert driver.wait() == 0, driver.output
    finally:
        for machine in (first, second):
            bench.machines.remove(machine)
    require_whole(bench)
    assert tables(bench.store()) == expected
    assert bench.num_repeated() <= 1
    require_clean(bench)
