"""A study on machines that join, leave and are unfit: it ends complete, and each is used or named."""

import signal
import time

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
    driver = bench.start()
    bench.wait_for_epochs(1, driver)
    second, joined = bench.machines.add(LARGE), time.time()
    try:

        def trained_there() -> list[int]:
            assert driver.status is None, driver.output
            return [number for event, number, _, pid, _ in bench.journal() if event == "epoch" and second.holds(pid)]

        (number, *_) = wait_until(trained_there, f"the machine that joined trains\n{driver.output}")
        record_property("seconds_from_join_to_first_epoch", round(time.time() - joined, 1))
        second.send(sent)
        left = time.time()
        assert driver.wait() == 0, driver.output
        starts = [time_ for event, trial, _, _, time_ in bench.journal() if (event, trial) == ("start", number)]
        record_property("seconds_from_death_to_next_process", round(starts[-1] - left, 1))
    finally:
        bench.machines.remove(second)
        bench.machines.remove(first)
    require_whole(bench)
    assert bench.num_repeated() <= 1
    require_clean(bench)


@pytest.mark.usefixtures("_namespaces")
def test_unfit_machines_that_join_are_named_and_avoided_and_the_study_ends_on_the_good_one(
    make_bench, expected, tmp_path
):
    bench: Bench = make_bench(settings=SETTINGS)
    assert bench.machines is not None
    (tmp_path / "bare").mkdir()
    good = bench.machines.add(LARGE)
    driver = bench.start()
    bench.wait_for_epochs(1, driver)
    bare = bench.machines.add_without_package(LARGE, tmp_path / "bare")
    unshared = bench.machines.add_unshared(LARGE, bench.results)
    try:
        assert driver.wait() == 0, driver.output
    finally:
        bench.machines.turn_off(unshared)
        for machine in (bare, good):
            bench.machines.remove(machine)
    for law in (
        "package cellseg-search must be importable",
        f"must see the folder of results {bench.place} as the driver does",
    ):
        assert law in driver.output
    ending = "It gets no trials of this run; the others go on."
    assert driver.output.count(ending) == 2, driver.output
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
