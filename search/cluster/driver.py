"""Ray, working for a :class:`search.study.study.Study`: start it, run trials on it, stop it.

Ray Tune decides where and when a process runs; which trial comes next and who goes on is the study's decision. Ray's
own record of the experiment is written to a temporary folder and thrown away: the study's tables are the truth.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ray import tune

from cellseg.errors import UserError
from search.cluster.scratch import scratch_folder
from search.cluster.signals import stop_on_signals
from search.cluster.slots import num_slots
from search.cluster.trainable import CellTrainable
from search.cluster.tune_parts import (
    MAX_MACHINE_LOSSES,
    Pauses,
    StudyScheduler,
    StudySearcher,
    StudyStopper,
    folder_name,
    name_of,
    user_error,
)
from search.study.study import Study

if TYPE_CHECKING:
    import pyarrow as pa

BUFFER_SECONDS = 1.0
"""Events may wait this long to be written while one slot after the other comes free; see :class:`Pauses`."""


def run_study(
    study: Study,
    table: "pa.Table",
    resources: Mapping[str, float],
    *,
    on_event: Callable[[], None] = lambda: None,
    callbacks: Sequence[tune.Callback] = (),
    on_leave: Callable[[], None] | None = None,
) -> bool:
    """Run trials until the study is over, by its trials or a limit; False if it was interrupted (Ctrl-C, SIGTERM,
    SIGHUP) before.

    Args:
        table: the packed data; it goes into Ray's object store once, and every trial maps it from there.
        resources: ``cpu`` and ``gpu`` of one trial, see :func:`search.cluster.slots.trial_resources`.
        on_event: called after everything that happened to a trial.
        callbacks: told of Tune's events; a UserError of theirs stops the search, whose trials can be continued.
        on_leave: lets the process end itself if Ray does not stop in time, see
            :func:`search.cluster.signals.stop_on_signals`. None: never.

    Raises:
        UserError: the study gave up because its trials fail, its tables cannot be written, or a machine is unfit.
    """
    trainable = tune.with_resources(tune.with_parameters(CellTrainable, data=table), dict(resources))
    # What Ray's dashboard shows as the actors' class.
    trainable.__name__ = trainable.__qualname__ = f"{CellTrainable.__name__}_{study.name}"
    slots = num_slots(resources)
    with (
        study.store.buffered(BUFFER_SECONDS),
        scratch_folder() as scratch,
        stop_on_signals(study.interrupt, _leave_nothing(scratch, on_leave)),
        _quiet_tune(),
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
                callbacks=[Pauses(study, slots), *callbacks],
                failure_config=tune.FailureConfig(max_failures=MAX_MACHINE_LOSSES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (tune.TuneError, UserError) as error:  # Tune wraps what some of our parts raise, and not that of others
            study.interrupt()
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
