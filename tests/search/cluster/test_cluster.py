"""Studies on a real cluster of several Ray nodes, which come, go and fail; the training is a stand-in."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import node_number

from search.storage.store import StudyStore
from search.storage.tables import TrialRow

TESTS = Path(__file__).parents[1]
PATIENCE = 400.0
"""Seconds after which a thing that must happen has not: machines that run tests are slow."""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="signals processes by their numbers"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without resources for trials. Each test adds machines with a resource of its own name."""
    from ray._private import utils as ray_utils
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # A raylet dies if its dashboard's agent takes 15 s to start, as on a busy machine it does; without the
        # dashboard's packages, which nothing here needs, it takes a fraction.
        patch.setattr(ray_utils, "get_dashboard_dependency_error", lambda: ImportError("not wanted"))
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        patch.setenv("RAY_AIR_NEW_OUTPUT", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        cluster = Cluster()
        add_node(cluster, num_cpus=0, num_gpus=0)
        yield cluster
        cluster.shutdown()


def add_node(cluster: Any, **what: Any) -> Any:
    """A new machine. Ray gives one half a minute to start, which a busy machine may need more of."""
    for _ in range(4):
        try:
            return cluster.add_node(**what)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    raise AssertionError("no Ray node starts here")


class Driver:
    """A driver that runs in a process of its own."""

    def __init__(self, cluster: Any, folder: Path, name: str, **settings: Any):
        self.place = folder / name
        command = [sys.executable, str(TESTS / "study_driver.py"), cluster.address, str(folder), name]
        with (folder / f"{name}.log").open("w") as log:
            self.process = subprocess.Popen(
                [*command, json.dumps({"asha": False, "keep": 50} | settings)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._log = folder / f"{name}.log"
        self.told: list[tuple[str, str, float]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("["):
                self.told.append(tuple(json.loads(line)))

    def texts(self, kind: str) -> list[str]:
        return [text for each, text, _ in self.told if each == kind]

    def rows(self) -> list[TrialRow]:
        return StudyStore.open(self.place).trials() if StudyStore.exists(self.place) else []

    def nodes(self) -> dict[int, set[int]]:
        """The machines that each trial finished epochs on, of those that are written."""
        if not StudyStore.exists(self.place):
            return {}
        store = StudyStore.open(self.place)
        return {
            row.number: {int(epoch.metrics["node"]) for epoch in store.epochs(row.number)} for row in store.trials()
        }

    def wait(self, condition: Callable[[], Any], what: str) -> float:
        """Wait until the condition holds; the time that it did."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            log = self._log.read_text()[-3000:]
            assert self.process.poll() is None or condition(), f"the driver ended before: {what}\n{log}"
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}\n{self.told}\n{self.rows()}\n{log}"
            time.sleep(0.1)
        return time.time()

    def finish(self) -> list[TrialRow]:
        assert self.process.wait(PATIENCE) == 0, self._log.read_text()[-3000:]
        self._reader.join(10)
        assert self.texts("over") == ["True"]
        return self.rows()


@contextmanager
def driving(*arguments: Any, **settings: Any) -> Iterator[Driver]:
    driver = Driver(*arguments, **settings)
    try:
        yield driver
    finally:
        if driver.process.poll() is None:
            driver.process.kill()
            driver.process.wait()


def test_a_study_waits_for_its_machine_uses_those_that_join_and_outlives_those_that_die(
    cluster, tmp_path, record_property
):
    wanted = {"cpu": 1, "gpu": 1, "custom": {"joining": 1}, "labels": {"zone": "in(a, b)"}}
    machine = {"num_cpus": 1, "num_gpus": 1, "resources": {"joining": 1}}
    with driving(cluster, tmp_path, "located", trials=400, resources=wanted) as driver:
        driver.wait(lambda: driver.texts("wait"), "it says what it waits for")
        (text,) = driver.texts("wait")
        assert text.startswith(
            "waiting for 1 GPU: no machine with cpu=1, gpu=1, joining=1, label zone: in(a, b) is there"
        )
        assert [row.epochs for row in driver.rows()] == [0], "one trial shows what is needed, and no more are proposed"

        asked = time.time()
        other = add_node(cluster, **machine, labels={"zone": "c"})
        first = add_node(cluster, **machine, labels={"zone": "a"})
        joined = time.time()
        driver.wait(lambda: any(driver.nodes().values()), "the first machine is used")
        record_property("seconds_from_join_to_first_epoch", time.time() - joined)
        assert driver.texts("wait")[-1] == "", "it waits no more"

        second = add_node(cluster, **machine, labels={"zone": "b"})
        joined, number = time.time(), node_number(second.node_id)
        driver.wait(lambda: any(number in nodes for nodes in driver.nodes().values()), "the second machine is used")
        record_property("seconds_from_join_to_first_epoch_of_a_running_study", time.time() - joined)

        def halfway() -> list[int]:
            rows = [row.number for row in driver.rows() if row.state == "RUNNING" and 0 < row.epochs < 3]
            return [trial for trial in rows if driver.nodes()[trial] == {number}]

        driver.wait(halfway, "a trial is half-way there")
        died, victims = time.time(), halfway()
        cluster.remove_node(second, allow_graceful=False)
        driver.wait(
            lambda: any(driver.nodes()[trial] - {number} for trial in victims) or not victims,
            "a trial of that machine goes on elsewhere",
        )
        record_property("seconds_from_the_death_of_a_machine_to_the_next_epoch_of_its_trial", time.time() - died)
        driver.wait(lambda: all(driver.rows()[trial].state == "COMPLETE" for trial in victims), "they end")
        driver.process.send_signal(signal.SIGINT)
        driver.process.wait(PATIENCE)
        rows, nodes, over = driver.rows(), driver.nodes(), time.time()
        cluster.remove_node(first)
        cluster.remove_node(other)

    assert {row.state for row in rows} <= {"COMPLETE", "INTERRUPTED"}
    assert set().union(*nodes.values()) == {node_number(first.node_id), number}, "none ran without the label"
    assert float(driver.texts("hours")[0]) * 3600 < over - asked, "waiting took none of its time"


@pytest.mark.slow
def test_two_studies_share_a_cluster_and_a_study_that_ends_leaves_its_slots(cluster, tmp_path):
    node = add_node(cluster, num_cpus=4, resources={"shared": 4})
    wanted = {"cpu": 1, "custom": {"shared": 1}}

    def running(driver: Driver) -> list[TrialRow]:
        return [row for row in driver.rows() if row.state == "RUNNING" and row.epochs > 0]

    with driving(cluster, tmp_path, "located-a", trials=400, resources=wanted) as first:
        first.wait(lambda: len(running(first)) == 4, "alone, the first has all slots")
        with driving(cluster, tmp_path, "located-b", trials=6, resources=wanted, max_slots=3) as second:
            second.wait(lambda: len(running(second)) == 2, "the second gets its half")
            second.wait(lambda: len(running(first)) == 2, "the first keeps no more than its half")
            assert len(running(second)) <= 2
            assert [row.state for row in second.finish()] == ["COMPLETE"] * 6
        first.wait(lambda: len(running(first)) == 4, "the first has all slots again")
        first.process.send_signal(signal.SIGINT)
        first.process.wait(PATIENCE)
    rows = first.rows()
    assert {row.state for row in rows} <= {"COMPLETE", "INTERRUPTED"}
    cluster.remove_node(node)


@pytest.mark.slow
def test_a_machine_that_kills_trials_is_avoided_and_named(cluster, tmp_path):
    bad = add_node(cluster, num_cpus=1, resources={"faulty": 1})
    good = add_node(cluster, num_cpus=1, resources={"faulty": 1})
    (tmp_path / "bad").write_text(bad.node_id)
    wanted = {"cpu": 1, "custom": {"faulty": 1}}
    with driving(cluster, tmp_path, "lingering", trials=8, resources=wanted) as driver:
        rows = driver.finish()
    assert [(row.state, row.epochs) for row in rows] == [("COMPLETE", 4)] * 8, "nobody is lost"
    assert set().union(*driver.nodes().values()) == {node_number(good.node_id)}
    (note,) = driver.texts("note")
    assert re.search(rf"\({bad.node_id[:8]}\) is avoided from now on: 3 trials lost their processes there", note)
    cluster.remove_node(bad)
    cluster.remove_node(good)


@pytest.mark.slow
def test_a_process_that_stops_to_work_is_ended_and_its_trial_goes_on(cluster, tmp_path):
    node = add_node(cluster, num_cpus=1, resources={"stopping": 1})
    (tmp_path / "stops").write_text("1")
    wanted = {"cpu": 1, "custom": {"stopping": 1}}
    stall = {"epochs": 4, "minutes": 0.1}
    with driving(cluster, tmp_path, "located", trials=3, resources=wanted, stall=stall) as driver:
        driver.wait(lambda: (tmp_path / "stopped").exists(), "a process is stopped")
        stopped = int((tmp_path / "stopped").read_text())
        rows = driver.finish()
    assert [(row.state, row.epochs) for row in rows] == [("COMPLETE", 4)] * 3
    (note,) = driver.texts("note")
    assert re.match(r"t0001 on .* reported nothing for \d+ s: it is started again elsewhere", note)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{stopped}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{stopped}").exists(), "it holds its slot no more"
    cluster.remove_node(node)
