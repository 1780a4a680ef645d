"""Deaths of processes that Ray tells in other words than Tune expects.

A process that Ray ends because its machine runs out of memory is an ``OutOfMemoryError`` to whoever waits for it; with
a full disk or a lost object there are others. Tune knows ``RayActorError`` only, and any other error from a process
ends its loop, and with it the search.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayTaskError


class ProcessDiedError(RayActorError):
    """The death of a trial's process as Tune understands it."""

    def __init__(self, cause: Exception):
        """``cause``: what Ray says."""
        super().__init__(error_msg=str(cause))
        self.cause = cause


def cause_of(error: Exception | None) -> Exception | None:
    """Return what Ray said of a trial's process."""
    return error.cause if isinstance(error, ProcessDiedError) else error


@contextmanager
def all_deaths_told() -> Iterator[None]:
    """Let Tune take every error from a process for the process's death, for the time of the block."""
    original = RayActorManager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if not isinstance(exception, RayActorError | RayTaskError):
            exception = ProcessDiedError(exception)
        original(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original
