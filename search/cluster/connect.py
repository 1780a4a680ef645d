"""The connection to Ray: a cluster that exists, or one of this machine's own for the time of a search."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cellseg.errors import UserError
from search.cluster.tune_parts import first_line


@contextmanager
def ray_cluster(address: str | None) -> Iterator[str]:
    """A Ray cluster for the time of the block: the one at ``address``, or a new one on this machine. Yields its
    dashboard.

    Raises:
        UserError: no cluster at that address.
    """
    # Trials write where they are told; a working directory of their own would break relative paths.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Result files, progress tables and TensorBoard events that nobody reads.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Tune's own record of the experiment, which grows with every trial: nobody restores from it.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
    # The newer of Tune's two reporters cannot be silenced; the board takes its place.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        _require_answer(address or "")
        context = ray.init(
            address=address or "local",
            include_dashboard=None if address else True,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--address: a Ray cluster must answer at '{address or 'local'}', but got '{first_line(error)}'. "
            "Start one with `ray start --head`; if it asks for a token, set RAY_AUTH_MODE=token on every machine."
        ) from error
    try:
        yield context.dashboard_url or ""
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise OSError if nobody listens at HOST:PORT. Ray itself would go on trying for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
