"""Processes that Ray ends: whatever it calls that, the search goes on."""

import pickle

import pytest
import ray
from ray.air.execution import ResourceRequest
from ray.air.execution._internal import RayActorManager
from ray.exceptions import NodeDiedError, OutOfDiskError, OutOfMemoryError, RayActorError

from search.cluster.deaths import ProcessDiedError, all_deaths_told, cause_of

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
