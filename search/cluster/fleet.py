"""The fleet: the trials of a study that wait for a machine, run on one, or have lost it.

Tune's parts ask it whether there is room for another trial and where it may go, and tell it what happens; it tells the
study. What it cannot mend by itself it says.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cellseg.errors import UserError
from search.cluster.losses import MAX_LOSSES, Losses
from search.cluster.room import Room
from search.cluster.slots import TrialResources, bundle, node_kind, node_name, selector
from search.cluster.stalls import Stalls
from search.study.study import Study

CHECK_SECONDS = 1.0
"""Stalled and waiting trials are looked for this often."""
UNFIT = "no trial can run there"
"""Why a process is ended on a machine that was found unfit."""
WAIT_SECONDS = 5.0
"""A trial that waits no longer than this for its machine is not spoken of."""


@dataclass(frozen=True, slots=True)
class Berth:
    """A trial that has no process yet."""

    since: float
    resources: TrialResources
    avoided: frozenset[str]
    """Ids of machines that it does not go to."""
    own: frozenset[str]
    """Those among them that other trials may go to."""


class Fleet:
    """Keeps track of the trials of a study that Tune has.

    Args:
        on_note: told what a person should know, in a sentence.
        on_wait: told what trials wait for, and an empty text when they do no more.
        on_slots: told how many trials the study may have side by side, whenever the cluster is looked at.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        study: Study,
        room: Room,
        *,
        on_note: Callable[[str], None] = lambda text: None,
        on_wait: Callable[[str], None] = lambda text: None,
        on_slots: Callable[[int], None] = lambda count: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._study, self._room, self._clock = study, room, clock
        self._note, self._wait, self._tell_slots = on_note, on_wait, on_slots
        usual = [row.seconds_per_epoch for row in study.rows if row.seconds_per_epoch]
        self._stalls = Stalls(study.experiment.stall, usual, clock)
        self._losses = Losses(room.avoided)
        self.num_losses: Counter[str] = Counter()
        """Processes of trials that were lost, by the id of their machine, which may be gone."""
        self._berths: dict[int, Berth] = {}
        self._actors: dict[int, Any] = {}  # handles of the processes that trials run in
        self._places: dict[str, str] = {}  # actor -> machine, by their ids
        self._unfit: dict[str, tuple[str, ...]] = {}  # machine, by its id -> what is wrong with it
        self._causes: dict[int, str] = {}  # why a trial's process was ended from here
        self._kinds: set[str] = set()
        self._checked = clock()
        self._waits_for = ""

    # Room

    @property
    def slots(self) -> int:
        """Trials that the study may have side by side now."""
        return self._room.slots

    @property
    def has_room(self) -> bool:
        """Whether another trial may be proposed. Cheap; true whenever the study has none."""
        running = self._study.num_running
        if self._room.look(self._demand, running):
            self._look_at_kinds()
            self._tell_slots(self._room.slots)
        return running - self._num_set_aside < self._room.slots

    @property
    def _num_set_aside(self) -> int:
        """Count the trials that wait although there is a free slot, because they avoid its machine: another may have
        it. Once it is taken they count, and the next slot that comes free is theirs."""
        aside = [berth for berth in self._berths.values() if berth.own]
        if not aside or self._room.slots < self._room.capacity:  # something else than machines bounds the study
            return 0
        avoided = {node for berth in aside for node in berth.own}
        there = sum(self._locate(actor) in avoided for actor in self._actors.values())
        coming = len(self._berths) - len(aside)
        return min(len(aside), max(0, self._room.slots_on(avoided) - there - coming))

    @property
    def _demand(self) -> int:
        return max(0, self._study.experiment.trials - self._study.num_finished)

    def berth(self, number: int) -> dict[str, Any]:
        """Take in that a trial was proposed; return what it occupies and where, see :func:`placement`."""
        own = self._losses.nodes_of(number) & {node["NodeID"] for node in self._room.nodes}
        if not self._room.elsewhere(own):  # rather there than nowhere
            own = set()
        avoided = frozenset(self._room.avoided | own)
        resources = dict(self._room.resources)
        self._berths[number] = Berth(self._clock(), resources, avoided, frozenset(own - self._room.avoided))
        return {"bundle": bundle(resources), "labels": selector(resources, avoided)}

    # What happens to trials

    def started(self, number: int, actor: Any) -> None:
        """Take in that a trial's process has started."""
        self._berths.pop(number, None)
        self._actors[number] = actor
        self._stalls.started(number)
        self._study.start()
        if self._locate(actor) in self._unfit:  # it was on its way when that was found out
            self._end_process(number, UNFIT)

    def reported(self, number: int, report: Mapping[str, Any] | None) -> None:
        """Take in a sign of life of a trial."""
        if report is None:
            return
        node = self._locate(self._actors.get(number))
        self._stalls.reported(number, report["seconds"])
        if report["epoch"] > self._study.store.trial(number).epochs:
            self._losses.progressed(number, node)

    def ended(self, number: int) -> None:
        """Forget a trial that ended."""
        self._leave(number)
        self._stalls.ended(number)
        self._losses.ended(number)

    def lost(self, number: int, error: Exception | None, cause: str) -> None:
        """Take in that a trial's process died or can no longer be used: it goes on elsewhere, or was lost once too
        often.

        Args:
            error: Ray's; None if it gave none.
            cause: that in a line.
        """
        if number not in self._berths and number not in self._actors:
            return  # it had ended
        node = self._place_of_loss(number, error)
        cause = self._causes.pop(number, cause)
        self._leave(number)
        if isinstance(error, ray.exceptions.OutOfMemoryError):  # Ray ends processes before the system does
            self.ended(number)
            self._study.end(number, "out-of-memory", f"its process was ended: {cause}")
            return
        alive = self._room.refresh()
        self._losses.lost(number, node)
        self.num_losses[node] += 1
        known = node not in alive or node in self._room.avoided
        if not known and self._losses.is_suspect(node) and self._room.elsewhere({node}):
            self._losses.bad_nodes.add(node)
            name, count = node_name(alive[node]), len(self._losses.trials_on(node))
            self._note(
                f"{name} is avoided from now on: {count} trials lost their processes there and none finished an "
                f"epoch in between. The last said: {cause}"
            )
        against = self._losses.against(number, alive)
        if against >= MAX_LOSSES:
            self.ended(number)
            self._study.end(number, "lost", f"its process died {against} times: {cause}")
            return
        place = "a machine that is gone" if node not in alive else node_name(alive[node])
        self._study.put_back(number, f"lost its process on {place}, goes on elsewhere: {cause}")

    def _leave(self, number: int) -> None:
        self._berths.pop(number, None)
        self._actors.pop(number, None)
        self._stalls.left(number)

    # What happens without an event

    def check(self, num_waiting: int, resetting: Mapping[int, Any]) -> None:
        """End the processes of trials that stalled, and say what others wait for.

        Args:
            num_waiting: trials whose resources Ray has not found yet.
            resetting: handles of the processes that are to take their next trial, by its number.
        """
        now = self._clock()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        for number, seconds in self._stalls.overdue().items():
            self._end_stalled(number, seconds)
        floor = 60 * self._study.experiment.stall.minutes
        for number, actor in resetting.items():
            if (berth := self._berths.get(number)) and now - berth.since > floor and number not in self._causes:
                self._actors[number] = actor
                self._end_stalled(number, now - berth.since)
        self._tell_waiting(num_waiting, now)

    def _end_stalled(self, number: int, seconds: float) -> None:
        """End a process that has stopped to work."""
        place = self._room.name_of(self.place_of(number))
        self._note(f"t{number:04d} on {place} reported nothing for {_duration(seconds)}: it is started again elsewhere")
        self._end_process(number, f"no report for {_duration(seconds)}")

    def _end_process(self, number: int, cause: str) -> None:
        """End the process of a trial. Tune hears of its death like of any other."""
        self._causes[number] = cause
        ray.kill(self._actors[number])

    def _tell_waiting(self, num_waiting: int, now: float) -> None:
        text = ""
        long = [berth for berth in self._berths.values() if now - berth.since > WAIT_SECONDS]
        if num_waiting and long:
            lacking = [berth for berth in long if not self._room.fits(berth.resources, berth.avoided)]
            if lacking or not self._actors:
                first = (lacking or long)[0]
                count = min(num_waiting, len(lacking or long))
                text = self._room.describe_lack(count, first.resources, first.avoided)
        if text != self._waits_for:
            self._waits_for = text
            self._wait(text)

    # Machines

    def place_of(self, number: int) -> str:
        """Return the id of the machine that a trial runs on; empty if it runs nowhere or Ray does not know."""
        return self._locate(self._actors.get(number))

    def name_of(self, node: str) -> str:
        """Name a machine (its id)."""
        return self._room.name_of(node)

    def exclude(self, node: str, problems: Sequence[str]) -> None:
        """Give a machine no trials any more, because none can run there: those that it has go on elsewhere.

        Args:
            node: the machine's id; empty if it is not known.
            problems: what is wrong with it, each with its name.

        Raises:
            UserError: no other machine fits a trial: the problems of all that were excluded.
        """
        if node in self._unfit:
            return
        self._unfit[node] = tuple(problems)
        self._room.avoided.add(node)
        there = self._room.refresh()
        if not node or not self._room.elsewhere(()):
            raise UserError(
                *dict.fromkeys(line for at, lines in self._unfit.items() if at in {node, *there} for line in lines)
            )
        for problem in problems:
            self._note(f"{problem} It gets no trials of this run; the others go on.")
        for number in [number for number in self._actors if self.place_of(number) == node]:
            self._end_process(number, UNFIT)

    def _locate(self, actor: Any) -> str:
        """The id of the machine that a process is on; empty if Ray does not know."""
        return "" if actor is None else self._locate_id(actor._ray_actor_id.hex())

    def _locate_id(self, actor_id: str) -> str:
        if actor_id not in self._places:
            address = (ray._private.state.actors(actor_id) or {}).get("Address", {})
            self._places[actor_id] = address.get("NodeID", "")
        return self._places[actor_id]

    def _place_of_loss(self, number: int, error: Exception | None) -> str:
        if number in self._actors:
            return self._locate(self._actors[number])
        actor_id = getattr(error, "actor_id", None)  # it died while it started
        return self._locate_id(actor_id) if actor_id else ""

    def _look_at_kinds(self) -> None:
        """Say so when seconds that the objective compares come from machines of different kinds."""
        objective = self._study.experiment.objective
        if objective is None or objective.per != "seconds" or len(self._kinds) > 1:
            return
        used = {self._locate(actor) for actor in self._actors.values()}
        self._kinds |= {node_kind(node) for node in self._room.nodes if node["NodeID"] in used}
        if len(self._kinds) > 1:
            self._note(
                f"objective: trials run on machines of different kinds ({', '.join(sorted(self._kinds))}), whose "
                "seconds do not compare. Ask for one kind with resources.labels or resources.custom."
            )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
