"""Processes that Ray ends: whatever it calls that, the search goes on."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.air.execution import ResourceRequest
from ray.air.execution._internal import RayActorManager
from ray.exceptions import NodeDiedError, OutOfDiskError, OutOfMemoryError, RayActorError

from search.cluster.deaths import ProcessDiedError, all_deaths_told, cause_of
from search.storage.store import StudyStore

TESTS = Path(__file__).parents[1]
DEATHS = [OutOfMemoryError("low on memory\nadvice"), OutOfDiskError("ref", None, ""), NodeDiedError("gone")]


class Task:
    """A task that a manager follows, on an actor that is not there."""

    def __init__(self, manager: RayActorManager):
        self.told: list[Exception] = []
        self._tracked_actor = manager.add_actor(object, {}, ResourceRequest([{"CPU": 1}]))
        manager._live_actors_to_ray_actors_resources[self._tracked_actor] = (None, None)

    def _on_error(self, actor: object, error: Exception) -> None:
        self.told.append(error)


class Resources:
    """As many as anybody wants."""

    def request_resources(self, resource_request: ResourceRequest) -> None:
        pass

    def free_resources(self, acquired_resource: None) -> None:
        pass


@pytest.fixture
def manager() -> RayActorManager:
    return RayActorManager(Resources())


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death).__name__)
def test_every_death_of_a_process_reaches_its_trial(manager, death):
    with pytest.raises(RuntimeError, match="unexpected exception"):
        manager._actor_task_failed(tracked_actor_task=Task(manager), exception=death)
    task = Task(manager)
    with all_deaths_told():
        manager._actor_task_failed(tracked_actor_task=task, exception=death)
    (told,) = task.told
    assert isinstance(told, RayActorError)
    told = pickle.loads(pickle.dumps(told))  # Tune writes it into a file
    assert type(cause_of(told)) is type(death)
    assert str(cause_of(told)) == str(told) == str(death)


def test_deaths_that_tune_knows_stay_what_they_are(manager):
    task, death = Task(manager), ray.exceptions.ActorDiedError()
    with all_deaths_told():
        manager._actor_task_failed(tracked_actor_task=task, exception=death)
    assert task.told == [death]
    assert cause_of(death) is death
    assert cause_of(None) is None
    assert not isinstance(death, ProcessDiedError)


HUNGRY = """
import json, os, sys, time
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from ray._private.utils import get_system_memory, get_used_memory

total = get_system_memory()
os.environ["RAY_memory_usage_threshold"] = str(get_used_memory() / total + 0.04)
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
os.environ["PYTHONPATH"] = os.pathsep.join([sys.argv[2], os.environ.get("PYTHONPATH", "")])
import ray
from fakes import FakeTrainable, empty_table, make_report, make_study
import search.cluster.driver

ray._private.utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")


class Hungry(FakeTrainable):
    def _fit(self, config):
        yield make_report(1, 0.1)
        if config["number"] == 1:
            hoard = bytearray(total // 10)
            hoard[:: 4096] = b"x" * len(hoard[:: 4096])
            time.sleep(60)
        for epoch in (2, 3, 4):
            yield make_report(epoch, 0.1 * epoch, ending="epochs" if epoch == 4 else None)


ray.init(address="local", num_cpus=1, num_gpus=0, include_dashboard=False, log_to_driver=False)
search.cluster.driver.CellTrainable = Hungry
study = make_study(Path(sys.argv[1]), "hungry", trials=3, asha=False)
assert search.cluster.driver.run_study(study, empty_table(), {"cpu": 1, "gpu": 0})
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.skipif(sys.platform != "linux", reason="Ray watches the memory of Linux machines only")
def test_a_trial_that_ray_ends_for_memory_is_infeasible_and_the_search_goes_on(tmp_path):
    script = tmp_path / "hungry.py"
    script.write_text(HUNGRY)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(TESTS)], capture_output=True, text=True, timeout=450
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = StudyStore.open(tmp_path / "hungry").trials()
    assert [row.state for row in rows] == ["COMPLETE", "INFEASIBLE", "COMPLETE"], json.dumps(
        [row.reason for row in rows]
    )
    assert rows[1].reason.startswith("out-of-memory: its process was ended: ")
