"""Ray, working for a :class:`search.study.study.Study`: start it, run trials on it, stop it.

Ray Tune decides where and when a process runs; which trial comes next and who goes on is the study's decision. Ray's
own record of the experiment is written to a temporary folder and thrown away: the study's tables are the truth.
"""

import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import ray
from ray import tune

from cellseg.errors import UserError
from search.cluster.deaths import all_deaths_told
from search.cluster.environment import environment
from search.cluster.fleet import Fleet
from search.cluster.job_progress import JobProgress
from search.cluster.metrics import StudyMetrics
from search.cluster.node_watch import NodeWatch
from search.cluster.preflight import NodeChecks
from search.cluster.room import Room
from search.cluster.scratch import scratch_folder
from search.cluster.signals import stop_on_signals
from search.cluster.slots import TrialResources
from search.cluster.trainable import CellTrainable
from search.cluster.tune_parts import (
    NO_BOUND,
    Pauses,
    StudyScheduler,
    StudySearcher,
    StudyStopper,
    folder_name,
    name_of,
    placement,
    user_error,
)
from search.study.study import Study

if TYPE_CHECKING:
    import pyarrow as pa

TUNE_SETTINGS = {
    # The searcher decides how many trials wait for their processes.
    "TUNE_MAX_PENDING_TRIALS_PG": str(NO_BOUND),
    # Ctrl-C is ours, see stop_on_signals.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Environment that Tune reads when it starts."""
BUFFER_SECONDS = 1.0
"""Events may wait this long to be written while one slot after the other comes free; see :class:`Pauses`."""


def run_study(
    study: Study,
    table: "pa.Table",
    resources: TrialResources | None,
    *,
    shared: bool = False,
    checks: NodeChecks | None = None,
    callbacks: Sequence[tune.Callback] = (),
    on_event: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_wait: Callable[[str], None] = lambda text: None,
    on_slots: Callable[[int], None] = lambda count: None,
    on_leave: Callable[[], None] | None = None,
) -> bool:
    """Run trials until the study is over, by its trials or a limit; False if it was interrupted (Ctrl-C, SIGTERM,
    SIGHUP) before.

    Args:
        table: the packed data; it goes into Ray's object store once, and every trial maps it from there.
        resources: what one trial occupies, as the space says; None: a GPU where there is one, else a CPU.
        shared: the cluster is not this driver's own: other studies may use it, and machines may join, so that a trial
            that fits nowhere waits for one. On a cluster of its own that is an error.
        checks: which has checked the machines that are there; it also checks those that join. None: nothing is checked.
        on_event: called after everything that happened to a trial.
        on_note: told what a person should know, in a sentence.
        on_wait: told what trials wait for, and an empty text when they do no more.
        on_slots: told every few seconds how many trials the study may have side by side.
        callbacks: told of Tune's events; a UserError of theirs stops the search, whose trials can be continued.
        on_leave: lets the process end itself if Ray does not stop in time, see
            :func:`search.cluster.signals.stop_on_signals`. None: never.

    Raises:
        UserError: the study gave up because its trials fail, its storage failed or is almost full, no machine is left
            that is fit, or a trial fits on no machine.
    """
    key = f"{study.name}/{ray.get_runtime_context().get_job_id()}/{uuid.uuid4().hex[:8]}"
    experiment = study.experiment
    room = Room(key, resources, max_slots=experiment.max_slots, priority=experiment.priority, shared=shared)
    progress = JobProgress(study)

    def wait(text: str) -> None:
        progress.wait(text)
        on_wait(text)

    fleet = Fleet(study, room, on_note=on_note, on_wait=wait, on_slots=on_slots)
    watch = [] if checks is None else [NodeWatch(study, fleet, checks, on_note)]
    trainable = tune.with_resources(tune.with_parameters(CellTrainable, data=table), placement)
    # What Ray's dashboard shows as the actors' class.
    trainable.__name__ = trainable.__qualname__ = f"{CellTrainable.__name__}_{study.name}"
    metrics = StudyMetrics(study, fleet)

    def leave() -> None:
        study.interrupt()
        progress.tell()
        metrics.tell()

    with (
        contextlib.closing(room),
        environment(TUNE_SETTINGS),
        all_deaths_told(),
        study.store.buffered(BUFFER_SECONDS),
        scratch_folder() as scratch,
        stop_on_signals(study.interrupt, _leave_nothing(scratch, on_leave)),
        _quiet_tune(),
    ):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(study, fleet),
                scheduler=StudyScheduler(study, fleet, on_event),
                num_samples=-1,  # the study counts
                reuse_actors=True,
                trial_name_creator=name_of,
                trial_dirname_creator=folder_name,
            ),
            run_config=tune.RunConfig(
                name=study.name,
                storage_path=scratch,
                stop=StudyStopper(study),
                callbacks=[Pauses(study, fleet), *watch, progress, metrics, *callbacks],
                # A trial whose process dies is over for Tune. The study proposes it again, see Fleet.lost.
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (tune.TuneError, UserError) as error:  # Tune wraps what some of our parts raise, and not that of others
            leave()
            if (ours := user_error(error)) is not None:
                raise ours from None
            raise
    leave()
    if not study.is_over and study.storage_error is not None:
        raise study.storage_error
    if study.abort_reason is not None:
        raise UserError(
            f"study '{study.name}': trials must be able to train, but {study.abort_reason}. "
            "Fix the cause, then run the same command again."
        )
    return study.is_over


def _leave_nothing(scratch: str, on_leave: Callable[[], None] | None) -> Callable[[], None] | None:
    """The last thing that a process does that ends itself."""
    if on_leave is None:
        return None

    def leave() -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        on_leave()

    return leave


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
