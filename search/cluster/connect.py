"""The connection to Ray: a cluster that exists, or one of this machine's own for the time of a search."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants

from cellseg.errors import Problem, UserError
from search.cluster.address import asks_for_token, find_cluster, no_cluster
from search.cluster.environment import environment
from search.cluster.token import MODE, make_token, use_token

DEFAULTS = {
    # Trials write where they are told; a working directory of their own would break relative paths.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Result files, progress tables and TensorBoard events that nobody reads.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune's own record of the experiment, which grows with every trial: nobody restores from it.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    # The newer of Tune's two reporters cannot be silenced; the board takes its place.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Nothing about a search is sent to Ray's makers unless its user asks for it.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment of Ray, where the user has not set it otherwise."""
LOOPBACK_ONLY = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
"""Lets all parts of a Ray use 127.0.0.1, as it does by default on macOS and Windows. Without it, they listen on every
network of the machine. The name is Ray's."""
LOCAL = "127.0.0.1"


@contextmanager
def ray_cluster(address: str | None) -> Iterator[str]:
    """A Ray cluster for the time of the block: the one at ``address``, or a new one on this machine. Yields its
    dashboard.

    A new one listens on this machine only, and asks for the token of ``~/.ray/auth_token`` unless ``RAY_AUTH_MODE``
    says otherwise.

    Raises:
        UserError: no cluster at that address, one that asks for another token, or none can be started.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    with _joined(address) if address else _started() as context:
        yield context.dashboard_url or ""


@contextmanager
def _joined(address: str) -> Iterator[ray.runtime_context.RuntimeContext]:
    head = find_cluster(address)
    if asks_for_token(head):
        use_token()
    try:
        context = ray.init(address=head, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        ray.shutdown()
        raise no_cluster(address, _one_line(error)) from error
    try:
        yield context
    finally:
        ray.shutdown()


@contextmanager
def _started() -> Iterator[ray.runtime_context.RuntimeContext]:
    from cellseg.device import usable_cpus  # imports torch: a driver that joins a cluster need not wait for it here

    with environment(LOOPBACK_ONLY), _loopback():
        if os.environ.get(MODE, "token") == "token":
            make_token()
            use_token()
        try:
            context = ray.init(
                address="local",
                num_cpus=usable_cpus(),  # Ray itself counts those of the machine, or of the container
                include_dashboard=True,
                dashboard_host=LOCAL,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # Ray raises whatever it likes, Exception itself among it
            ray.shutdown()
            raise UserError(
                Problem(
                    "Ray",
                    "must start on this machine",
                    f"'{_one_line(error)}'",
                    "Free memory and disk, wait until the machine is less busy, and see /tmp/ray/session_latest/logs.",
                )
            ) from error
        try:
            yield context
        finally:
            ray.shutdown()


@contextmanager
def _loopback() -> Iterator[None]:
    """What :data:`LOOPBACK_ONLY` says to new processes, for this one: Ray read it when it was imported."""
    former, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = former


def _one_line(error: Exception) -> str:
    """The whole text of an error in one line: of several lines, the first often says the least."""
    return " ".join(str(error).split()) or type(error).__name__
