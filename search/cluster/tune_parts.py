"""Tune's questions and news, passed on to a :class:`search.study.study.Study`.

Tune takes trials from a Searcher, shows results to a Scheduler, asks a Stopper whether all is over, and tells a
Callback when its loop comes to a rest. None of them decides anything.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle, tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cellseg import errors
from cellseg.errors import UserError
from search.cluster.fleet import Fleet
from search.cluster.trainable import DETAIL, ENDING, REPORT, UNFIT_NODE, trial_name
from search.study.study import Study

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

NO_BOUND = 1_000_000
"""Trials that Tune may let wait for resources: the searcher is the one who counts."""
BERTH = "berth"
"""Key of a trial's config: the bundle and the labels that :func:`placement` reads."""


# Tune pickles what makes names and folders with every trial: functions of a module, which hold nothing.
def name_of(trial: "Trial") -> str:
    """Name a trial for Tune and Ray's dashboard."""
    return trial_name(trial.config["study"], trial.config["number"])


def folder_name(trial: "Trial") -> str:
    """Name the folder of Tune's own record of a trial."""
    return f"t{trial.config['number']:04d}"


def placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial asks of Ray."""
    berth = config[BERTH]
    return tune.PlacementGroupFactory([berth["bundle"]], bundle_label_selector=[berth["labels"]])


def first_line(error: BaseException | None) -> str:
    """Return the first line of an error, without Ray's advice and the worker's traceback."""
    if error is None:
        return "no reason given by Ray"
    return errors.first_line(error.cause if isinstance(error, ray.exceptions.RayTaskError) else error)


def user_error(error: BaseException | None) -> UserError | None:
    """Find the UserError that one of our parts raised, which Tune wraps in errors of its own."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


class Disposable:
    """A part of Tune's that leaves nothing behind: Tune pickles its parts for a restore that never comes."""

    def __getstate__(self) -> dict:
        return {}


class StudySearcher(Disposable, Searcher):
    """Hands the study's proposals to Tune, as many as there is room for.

    Tune must be told :data:`NO_BOUND`, or it lets one trial at a time wait for its process.
    """

    def __init__(self, study: Study, fleet: Fleet):
        super().__init__()  # no metric: the study reads the reports, Tune need not
        self._study = study
        self._fleet = fleet

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self._fleet.has_room:
            return None  # Tune asks again in a moment; and never waits here, for some trial of ours is there
        proposal = self._study.propose()
        if proposal is not None:
            return {
                "study": self._study.name,
                "number": proposal.number,
                "config": dict(proposal.config),
                "folder": str(proposal.folder),
                "epochs": proposal.epochs,
                BERTH: self._fleet.berth(proposal.number),
            }
        # None means "ask again": a running trial may yet fail and leave room for another.
        return Searcher.FINISHED if self._study.is_over else None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: the scheduler told the study."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's tables are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never: a study is continued from its tables."""


class StudyScheduler(Disposable, FIFOScheduler):
    """Tells the study and the fleet what trials did, and Tune what was decided."""

    def __init__(self, study: Study, fleet: Fleet, on_event: Callable[[], None]):
        super().__init__()
        self._study = study
        self._fleet = fleet
        self._on_event = on_event

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Nothing: Tune takes the trials that wait in order. It asks in every step, which is what this is used for."""
        controller = tune_controller._tune_controller
        if not controller._pending_trials:
            # Tune keeps one process for the next trial. There is none: others may have its slot.
            controller._cleanup_cached_actors(force_all=True)
        resetting = controller._resetting_trials
        self._fleet.check(
            controller._actor_manager.num_pending_actors,
            {trial.config["number"]: trial.temporary_state.ray_actor for trial in resetting},
        )

    def on_trial_result(self, tune_controller: Any, trial: "Trial", result: dict) -> str:
        number = trial.config["number"]
        report, ending = json.loads(result[REPORT]), result[ENDING]
        if ending == UNFIT_NODE:
            raise UserError(result[DETAIL])  # no trial is to blame: the search stops, and the next continues it
        self._fleet.reported(number, report)
        with self._study.store.held():  # a last epoch is never on disk without its end
            goes_on = report is not None and self._study.report(number, report, result.get("hostname", ""))
            if ending is not None:
                self._study.end(number, ending, result[DETAIL])
        if not goes_on:
            self._fleet.ended(number)
        self._on_event()
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: "Trial") -> None:
        """The trial's process died, or can no longer be used. For Tune the trial is over; if the study wants it to go
        on, it proposes it again."""
        error = _last_error(trial)
        self._fleet.lost(trial.config["number"], error, first_line(error))
        self._on_event()


def _last_error(trial: "Trial") -> Exception | None:
    """The error that ended the trial's process. Tune's own getter reads a copy that comes later or too late."""
    if trial.pickled_error_file is None:
        return None
    with Path(trial.pickled_error_file).open("rb") as file:
        return cloudpickle.load(file)


class StudyStopper(Disposable, tune.Stopper):
    """Ends the experiment when the study gives up or reaches a limit. Tune asks several times a second, so a limit on
    time needs no event."""

    def __init__(self, study: Study):
        self._study = study

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._study.must_stop


class Pauses(Disposable, tune.Callback):
    """Tells the fleet of trials that start, and uses the moments in which no slot waits: tables are written, and
    proposals made ahead.

    Tune's loop handles an event in each step, or after a tenth of a second without one ends the step all the same. One
    proposal a step, so that a result that comes in meanwhile waits for no more.
    """

    def __init__(self, study: Study, fleet: Fleet):
        self._study = study
        self._fleet = fleet
        self._is_quiet, self._is_slot_free = True, False

    def on_trial_start(self, iteration: int, trials: list, trial: "Trial", **_: Any) -> None:
        self._is_quiet = False
        self._fleet.started(trial.config["number"], trial.temporary_state.ray_actor)

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        self._is_quiet = False

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        self._is_slot_free = True

    def on_trial_error(self, *_: Any, **__: Any) -> None:
        self._is_slot_free = True

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if not self._is_slot_free:  # else its next trial is started first, at the beginning of the next step
            self._study.flush()
            if self._is_quiet:
                self._study.sampler.prepare(self._fleet.slots)
        self._is_quiet, self._is_slot_free = True, False
