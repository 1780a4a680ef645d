"""A watch over the machines of a search: those that are there and those that join are checked, and their checkpoints
must arrive."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray import tune

from cellseg.checkpoint import LAST, has_checkpoint
from cellseg.errors import raise_all
from search.cluster.fleet import Fleet
from search.cluster.preflight import NodeChecks, own_facts, require_nodes, space_findings, warnings_of
from search.cluster.shared_folder import own_folders, shared_folder, unshared
from search.cluster.slots import TrialResources
from search.cluster.trainable import REPORT
from search.cluster.tune_parts import Disposable
from search.storage.store import StudyStore
from search.study.study import Study

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

LOOK_SECONDS = 2.0
"""Time between two looks at the list of nodes."""
ARRIVAL_SECONDS = 15.0
"""A checkpoint that a machine has written must be seen by the driver within this time."""


@contextmanager
def checked_nodes(
    store: StudyStore, resources: TrialResources | None, warn: Callable[[str], None], *, is_own: bool
) -> Iterator[NodeChecks | None]:
    """Check every machine that trials can run on, and yield what checks those that come during the block, if any may.

    Args:
        store: the study's.
        resources: what a trial occupies, as the space says.
        warn: takes a line about what may become wrong.
        is_own: whether the cluster is this machine alone, of which most is known to be right.

    Raises:
        UserError: all problems of all machines.
    """
    folder = store.folder.resolve()
    if is_own:
        found = space_findings(own_facts(folder), folder)
        raise_all(found.problems)
        for warning in found.warnings:
            warn(f"warning: {warning}")
        yield None
        return
    with own_folders() if store.uri else shared_folder(folder) as shared:
        checks = NodeChecks(resources, shared)
        for warning in require_nodes(checks.wait()):
            warn(f"warning: {warning}")
        yield checks


class NodeWatch(Disposable, tune.Callback):
    """Takes machines out of the fleet that are found unfit, or whose checkpoints do not arrive. The search goes on
    on the others, and ends with a UserError when none is left.

    Args:
        checks: which has checked the machines that were there at the start.
        warn: takes a line about what may become wrong.
    """

    def __init__(
        self,
        study: Study,
        fleet: Fleet,
        checks: NodeChecks,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._study = study
        self._fleet = fleet
        self._checks = checks
        self._warn = warn
        self._clock = clock
        self._next_look = clock() + LOOK_SECONDS
        self._reported: set[tuple[int, str]] = set()  # trial and node
        self._awaited: dict[int, tuple[str, float]] = {}  # trial -> its node, and until when its checkpoint may come

    def on_trial_result(self, iteration: int, trials: list, trial: "Trial", result: dict, **_: Any) -> None:
        number = trial.config["number"]
        node = self._fleet.place_of(number)
        is_new = self._study.store.uri is None and (number, node) not in self._reported
        if is_new and json.loads(result[REPORT]) is not None:
            self._reported.add((number, node))
            self._awaited[number] = (node, self._clock() + ARRIVAL_SECONDS)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._look_for_checkpoints()
        if self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_SECONDS
            reports = self._checks.look()
            for warning in warnings_of(reports):
                self._warn(f"warning: {warning}")
            for report in reports:
                if report.problems:
                    self._fleet.exclude(report.node_id, [str(problem) for problem in report.problems])

    def _look_for_checkpoints(self) -> None:
        for number, (node, deadline) in list(self._awaited.items()):
            folder = self._study.store.checkpoint_folder(number) / LAST
            # A trial that has ended keeps no state to go on from.
            if self._study.store.trial(number).state != "RUNNING" or has_checkpoint(folder):
                del self._awaited[number]
            elif self._clock() > deadline:
                del self._awaited[number]
                problem = unshared(self._fleet.name_of(node), folder, "no checkpoint after the trial's first epoch")
                self._fleet.exclude(node, [str(problem)])
