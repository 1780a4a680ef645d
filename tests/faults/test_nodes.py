"""A real study on machines that join, leave and are unfit: it ends complete, and each is used or named."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.faults.nodes import Machines, Search, machines

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes by their numbers"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def _namespaces() -> None:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "nothing", "/mnt"]
    try:
        possible = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("no namespaces can be made here")


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_machine_that_joins_trains_and_when_it_leaves_its_trial_goes_on_elsewhere(
    cluster, tmp_path, sent, record_property
):
    first = cluster.add()
    with Search(cluster, tmp_path, trials=4, epochs=5) as search:
        search.start()
        second = cluster.add()
        joined = time.time()
        raylet = cluster.raylet(second)
        victims = search.wait(lambda: search.on(raylet), "a trial is half-way on the machine that joined")
        record_property("seconds_from_join_to_first_epoch", time.time() - joined)
        raylet.send_signal(sent)
        left = time.time()
        search.wait(
            lambda: all(search.num_attempts(number) > 1 for number in victims), "it goes on elsewhere", running=False
        )
        record_property("seconds_from_death_to_next_process", time.time() - left)
        assert search.end() == 0, search.said
    cluster.remove(second)
    cluster.remove(first)
    assert [row.state for row in search.rows()] == ["COMPLETE"] * 4
    assert search.is_complete()


@pytest.mark.slow
@pytest.mark.usefixtures("_namespaces")
def test_unfit_machines_that_join_are_named_and_avoided_and_the_study_ends_on_the_good_one(cluster, tmp_path):
    good = cluster.add()
    (tmp_path / "bare").mkdir()
    with Search(cluster, tmp_path, trials=6, epochs=6) as search:
        search.start()
        search.wait(lambda: search.on(cluster.raylet(good)), "the study trains")
        bare = cluster.add_without_package(tmp_path / "bare")
        unshared = cluster.add_unshared(search.results)
        named = f"must see the folder of results {search.results / 'tiny'} as the driver does"
        for law in ("package cellseg-search must be importable", named):
            search.wait(lambda law=law: law in search.said, law)
        assert search.end() == 0, search.said
    lines = [
        line for line in search.said.splitlines() if line.endswith("It gets no trials of this run; the others go on.")
    ]
    assert len(lines) == 2, search.said
    assert [row.state for row in search.rows()] == ["COMPLETE"] * 6
    assert search.is_complete()
    cluster.turn_off(unshared)
    for machine in (bare, good):
        cluster.remove(machine)


@pytest.mark.slow
@pytest.mark.usefixtures("_namespaces")
def test_a_study_that_finds_only_an_unfit_machine_stops_with_the_reason_and_continues_on_another(cluster, tmp_path):
    with Search(cluster, tmp_path, trials=2, epochs=2) as search:
        search.start()
        search.wait(lambda: "waiting for 1 CPU" in search.said, "it waits for a machine")
        unshared = cluster.add_unshared(search.results)
        assert search.end() == 2, search.said
        assert "must see the folder of results" in search.said.splitlines()[-1]
        assert "Put --results on a disk that all machines mount" in search.said
        assert {row.state for row in search.rows()} <= {"INTERRUPTED"}
        cluster.turn_off(unshared)
        good = cluster.add()
        search.start()
        assert search.end() == 0, search.said
    assert search.is_complete()
    cluster.remove(good)
