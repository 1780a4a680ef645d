"""Ray, working for a :class:`search.study.study.Study`: start it, run trials on it, stop it.

Ray Tune decides where and when a process runs; which trial comes next and who goes on is the study's decision. Ray's
own record of the experiment is written to a temporary folder and thrown away: the study's tables are the truth.
"""

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray
from ray import tune

from cellseg.errors import UserError
from search.cluster.trainable import CellTrainable
from search.cluster.tune_parts import (
    MAX_MACHINE_LOSSES,
    Pauses,
    StudyScheduler,
    StudySearcher,
    StudyStopper,
    first_line,
    folder_name,
    name_of,
    user_error,
)
from search.study.study import Study

if TYPE_CHECKING:
    import pyarrow as pa

BUFFER_SECONDS = 1.0
"""Events may wait this long to be written while one slot after the other comes free; see :class:`Pauses`."""

RAY_UNITS = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths."""


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


def run_study(
    study: Study, table: "pa.Table", resources: Mapping[str, float], *, on_event: Callable[[], None] = lambda: None
) -> bool:
    """Run trials until the study is over, by its trials or a limit; False if it was interrupted (Ctrl-C, SIGTERM)
    before.

    Args:
        table: the packed data; it goes into Ray's object store once, and every trial maps it from there.
        resources: ``cpu`` and ``gpu`` of one trial, see :func:`trial_resources`.
        on_event: called after everything that happened to a trial.

    Raises:
        UserError: the study gave up because its trials fail, or its tables cannot be written.
    """
    trainable = tune.with_resources(tune.with_parameters(CellTrainable, data=table), dict(resources))
    # What Ray's dashboard shows as the actors' class.
    trainable.__name__ = trainable.__qualname__ = f"{CellTrainable.__name__}_{study.name}"
    slots = num_slots(resources)
    with (
        tempfile.TemporaryDirectory(prefix="search-") as scratch,
        _sigterm_as_ctrl_c(),
        _quiet_tune(),
        study.store.buffered(BUFFER_SECONDS),
    ):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(study, on_event),
                scheduler=StudyScheduler(study, on_event),
                num_samples=-1,  # the study counts
                max_concurrent_trials=slots,
                reuse_actors=True,
                trial_name_creator=name_of,
                trial_dirname_creator=folder_name,
            ),
            run_config=tune.RunConfig(
                name=study.name,
                storage_path=scratch,
                stop=StudyStopper(study),
                callbacks=[Pauses(study, slots)],
                failure_config=tune.FailureConfig(max_failures=MAX_MACHINE_LOSSES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:
            if (ours := user_error(error)) is not None:
                raise ours from None
            raise
    study.interrupt()
    if study.abort_reason is not None:
        raise UserError(
            f"study '{study.name}': trials must be able to train, but {study.abort_reason}. "
            "Fix the cause, then run the same command again."
        )
    return study.is_over


def trial_resources(wanted: Mapping[str, float | None] | None) -> dict[str, float]:
    """Decide what one trial occupies: as wanted, or a GPU and its share of the CPUs where the cluster has one, else one
    CPU.

    Args:
        wanted: ``gpu``, and ``cpu`` or None for the CPUs that go with it. None: nothing is asked for.

    Raises:
        UserError: more than any machine of the cluster has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if wanted is None:
        wanted = {"gpu": 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0}
    gpu = wanted["gpu"] or 0
    cpu = wanted.get("cpu") or max(int(_cpus_of_a_gpu(nodes) * gpu), 1)
    if not any(node.get("CPU", 0) >= cpu and node.get("GPU", 0) >= gpu for node in nodes):
        largest: Mapping[str, float] = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise UserError(
            f"resources: a trial must fit on one machine, but got cpu={cpu:g}, gpu={gpu:g}, and "
            f"the largest has {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs. Ask for less."
        )
    return {"cpu": cpu, "gpu": gpu}


def _cpus_of_a_gpu(nodes: Iterable[Mapping[str, float]]) -> int:
    """CPUs for a trial on each GPU of ``nodes`` at once: the smallest share there is, at least 1, and no more than
    training and the most loader processes of ``train.workers: auto`` use."""
    from cellseg.data.workers import MOST

    # A machine without CPUs for Ray takes no trial, so it has no say.
    having_both = [node for node in nodes if node.get("GPU", 0) >= 1 and node.get("CPU", 0) >= 1]
    share = min((int(node["CPU"] // node["GPU"]) for node in having_both), default=1)
    return min(max(share, 1), MOST + 1)


def num_slots(resources: Mapping[str, float]) -> int:
    """Count the trials that fit on the cluster side by side as it is now, at least 1.

    A share of a GPU is one of a single GPU: of two GPUs, 0.6 each are two trials, not three.
    """
    slots = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = []
            if resources.get("cpu", 0) > 0:
                fits.append(_times(has.get("CPU", 0), resources["cpu"]))
            if (gpu := resources.get("gpu", 0)) > 0:
                fits.append(int(has.get("GPU", 0)) * _times(1, gpu) if gpu < 1 else _times(has.get("GPU", 0), gpu))
            slots += min(fits, default=0)
    return max(1, slots)


def _times(whole: float, part: float) -> int:
    """Return how many times ``part`` fits into ``whole``, in ten-thousandths as Ray counts: 5 for 1 and 0.2."""
    return round(whole * RAY_UNITS) // max(round(part * RAY_UNITS), 1)


# Functions of the module: Tune pickles these two for every trial, with all that they hold.


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Batch systems end a job with SIGTERM: stop as cleanly as after Ctrl-C."""
    former = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """The board says what there is to say; Tune's hints (how to restore, where its files are) would mislead."""
    logger = logging.getLogger("ray.tune")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(former)
