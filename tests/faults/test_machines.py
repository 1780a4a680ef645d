"""A study on machines that join, leave and are unfit: it ends complete, and each is used or named."""

import signal
import time
from pathlib import Path

import pytest

from tests.faults.harness import Bench, require_clean, require_whole, tables, wait_until
from tests.faults.machines import can_unshare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LARGE = 5
"""CPUs of a trial, more than the machine has that all tests share."""
SETTINGS = ("--set", f"resources={{cpu: {LARGE}}}")


@pytest.fixture
def _namespaces() -> None:
    if not can_unshare():
        pytest.skip("no namespaces can be made here")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_machine_that_joins_trains_and_when_it_leaves_its_trial_goes_on_elsewhere(make_bench, sent, record_property):
    bench: Bench = make_bench(slots=2, settings=SETTINGS)
    assert bench.machines is not None
    first = bench.machines.add(LARGE)
    with bench.held():
        driver = bench.start()
        wait_until(bench.begun, f"it trains\n{driver.output}")
        second, joined = bench.machines.add(LARGE), time.time()

        def begun_there() -> tuple[int, int, float] | None:
            assert driver.status is None, driver.output
            begun = [line for line in bench.journal() if line[0] == "begin"]
            return next(((number, pid, time_) for _, number, _, pid, time_ in begun if second.holds(pid)), None)

        number, pid, began = wait_until(begun_there, f"the machine that joined trains\n{driver.output}")
        record_property("seconds_from_join_to_first_epoch", round(began - joined, 1))
        bench.machines.send(second, sent)
        # Until then it is held: it could end a short trial before it notices that its machine is gone.
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the trial's process ends")
    try:
        assert driver.wait() == 0, driver.output
    finally:
        bench.machines.remove(second)
        bench.machines.remove(first)
    starts = [pid for event, trial, _, pid, _ in bench.journal() if (event, trial) == ("start", number)]
    assert len(starts) == 2
    require_whole(bench)
    assert bench.num_repeated() == 1
    require_clean(bench)


@pytest.mark.usefixtures("_namespaces")
def test_unfit_machines_that_join_are_named_and_avoided_and_the_study_ends_on_the_good_one(
    make_bench, expected, tmp_path
):
    bench: Bench = make_bench(settings=SETTINGS)
    assert bench.machines is not None
    (tmp_path / "bare").mkdir()
    laws = (
        "package cellseg-search must be importable",
        f"must see the folder of results {bench.place} as the driver does",
    )
    good = bench.machines.add(LARGE)
    with bench.held():
        driver = bench.start()
        wait_until(bench.begun, f"it trains\n{driver.output}")
        bare = bench.machines.add_without_package(LARGE, tmp_path / "bare")
        unshared = bench.machines.add_unshared(LARGE, bench.results)
        for law in laws:
            wait_until(lambda law=law: law in driver.output or driver.status is not None, law)
    try:
        assert driver.wait() == 0, driver.output
    finally:
        bench.machines.turn_off(unshared)
        for machine in (bare, good):
            bench.machines.remove(machine)
    assert all(law in driver.output for law in laws), driver.output
    assert driver.output.count("It gets no trials of this run; the others go on.") == 2, driver.output
    require_whole(bench)
    assert tables(bench.store()) == expected
    require_clean(bench)


@pytest.mark.usefixtures("_namespaces")
def test_a_study_that_finds_only_an_unfit_machine_stops_with_the_reason_and_continues_on_another(make_bench, expected):
    bench: Bench = make_bench(settings=SETTINGS)
    assert bench.machines is not None
    driver = bench.start()
    wait_until(lambda: f"waiting for {LARGE} CPU" in driver.output, f"it waits\n{driver.output}")
    unshared = bench.machines.add_unshared(LARGE, bench.results)
    try:
        assert driver.wait() == 2, driver.output
    finally:
        bench.machines.turn_off(unshared)
    assert "must see the folder of results" in driver.output.splitlines()[-1]
    assert "Put --results on a disk that all machines mount" in driver.output
    assert {row.state for row in bench.rows()} <= {"INTERRUPTED"}
    good = bench.machines.add(LARGE)
    try:
        bench.finish()
    finally:
        bench.machines.remove(good)
    require_whole(bench)
    assert tables(bench.store()) == expected
    require_clean(bench)
