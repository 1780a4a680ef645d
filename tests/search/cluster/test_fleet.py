"""What becomes of trials that wait for a machine or lose it. The cluster is a list of nodes, and nothing runs."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from fakes import make_report, make_study

from cellseg.errors import UserError
from search.cluster import fleet as fleets
from search.cluster import room as rooms
from search.cluster import slots
from search.cluster.fleet import Fleet
from search.cluster.losses import MAX_LOSSES, NODE_LOSSES
from search.cluster.room import LOOK_SECONDS, Room
from search.cluster.slots import NODE_ID
from search.cluster.tune_parts import BERTH, placement
from search.study.study import Study

CPU_TRIAL = {"cpu": 1, "gpu": 0}


def node(name: str, labels: dict | None = None, **resources: float) -> dict:
    return {
        "NodeID": name * 8,
        "NodeManagerHostname": f"host-{name}",
        "Resources": resources or {"CPU": 1.0},
        "Labels": labels or {},
        "Alive": True,
    }


class Actor:
    """A handle of a process, of which only the id is used."""

    def __init__(self, place: str):
        self._ray_actor_id = self
        self.place = place

    def hex(self) -> str:
        return f"{id(self):x}@{self.place}"


@dataclass
class World:
    """A cluster without Ray."""

    nodes: list[dict]
    now: float = 100.0
    killed: list[Actor] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    published: list[Any] = field(default_factory=list)
    others: list[Any] = field(default_factory=list)
    asked: list[tuple[int, Any]] = field(default_factory=list)
    scales: bool = False

    def pass_time(self, fleet: Fleet, seconds: float, num_waiting: int = 0, resetting: Any = ()) -> None:
        while seconds > 0:
            self.now += min(seconds, 2.0)
            seconds -= 2.0
            fleet.check(num_waiting, dict(resetting))

    def fleet(
        self, study: Study, wanted: Any = CPU_TRIAL, *, shared: bool = True, max_slots: int | None = None
    ) -> Fleet:
        room = Room("me", wanted, max_slots=max_slots, shared=shared, clock=lambda: self.now)
        return Fleet(study, room, on_note=self.notes.append, on_wait=self.waits.append, clock=lambda: self.now)


@pytest.fixture
def world(monkeypatch) -> World:
    world = World([node("a"), node("b"), node("c")])

    class FakeRegister:
        def __init__(self, *_: Any):
            pass

        def publish(self, claim: Any) -> list[Any]:
            world.published.append(claim)
            return world.others

    class FakeGrowth:
        def ask(self, count: int, resources: Any) -> None:
            world.asked.append((count, resources))

    monkeypatch.setattr(slots.ray, "nodes", lambda: world.nodes)
    monkeypatch.setattr(rooms, "Register", FakeRegister)
    monkeypatch.setattr(rooms, "Growth", FakeGrowth)
    monkeypatch.setattr(rooms, "has_autoscaler", lambda: world.scales)
    monkeypatch.setattr(fleets.ray, "kill", world.killed.append)
    monkeypatch.setattr(
        fleets.ray._private.state, "actors", lambda actor: {"Address": {"NodeID": actor.partition("@")[2]}}
    )
    return world


def start(study: Study, fleet: Fleet, place: str) -> int:
    """Propose a trial and let it start on a machine."""
    number = study.propose().number
    berth = fleet.berth(number)
    assert place * 8 not in berth["labels"].get(NODE_ID, ""), "it would not go there"
    fleet.started(number, Actor(place * 8))
    return number


def epoch(study: Study, fleet: Fleet, number: int, epoch: int) -> None:
    report = make_report(epoch, 0.1)
    fleet.reported(number, report)
    study.report(number, report)


def died(fleet: Fleet, number: int, cause: str = "it crashed") -> None:
    fleet.lost(number, ray.exceptions.RayActorError(), cause)


@pytest.fixture
def study(tmp_path) -> Study:
    return make_study(tmp_path, trials=20, asha=False)


def test_slots_follow_the_machines(world, study):
    fleet = world.fleet(study)
    for count in range(3):
        assert fleet.has_room, count
        start(study, fleet, "abc"[count])
    assert not fleet.has_room
    world.nodes.append(node("d"))
    assert not fleet.has_room, "it was looked a moment ago"
    world.now += LOOK_SECONDS
    assert fleet.has_room
    start(study, fleet, "d")
    assert not fleet.has_room
    world.nodes[:] = []
    world.now += LOOK_SECONDS
    assert (fleet.has_room, fleet.slots) == (False, 1)


def test_max_slots_bounds_them(world, study):
    fleet = world.fleet(study, max_slots=2)
    start(study, fleet, "a")
    assert fleet.has_room
    start(study, fleet, "b")
    assert not fleet.has_room
    assert {claim.demand for claim in world.published} == {2}


def test_other_studies_get_their_share(world, study):
    world.nodes.append(node("d"))
    fleet = world.fleet(study)
    assert (fleet.has_room, fleet.slots) == (True, 4)
    world.others.append(rooms.Claim("other", CPU_TRIAL, 10))
    world.now += LOOK_SECONDS
    assert (fleet.has_room, fleet.slots) == (True, 2)


def test_a_study_of_a_driver_s_own_cluster_asks_nobody_and_its_trials_must_fit(world, study):
    fleet = world.fleet(study, shared=False)
    assert fleet.has_room
    assert not world.published and not world.asked
    with pytest.raises(UserError, match=r"must fit on one machine, but got cpu=2, gpu=0, disk=1, label zone: a, and"):
        world.fleet(study, {"cpu": 2, "gpu": 0, "custom": {"disk": 1}, "labels": {"zone": "a"}}, shared=False)


def test_an_autoscaler_is_asked_for_as_many_again_or_for_max_slots_at_once(world, study):
    world.fleet(study).has_room  # noqa: B018
    assert world.asked[-1] == (0, CPU_TRIAL), "nobody would start any"
    world.scales = True
    world.fleet(study).has_room  # noqa: B018
    assert world.asked[-1] == (3, CPU_TRIAL)
    world.fleet(study, max_slots=11).has_room  # noqa: B018
    assert world.asked[-1] == (8, CPU_TRIAL)
    world.nodes.clear()
    world.fleet(study).has_room  # noqa: B018
    assert world.asked[-1] == (1, CPU_TRIAL), "beside the one trial that waits"


def test_by_default_a_study_changes_to_gpus_as_soon_as_there_are_any(world, study):
    fleet = world.fleet(study, None)
    assert fleet.has_room
    assert fleet.berth(study.propose().number)["bundle"] == {"CPU": 1.0}
    world.nodes.append(node("g", CPU=8.0, GPU=2.0))
    world.now += LOOK_SECONDS
    assert fleet.has_room
    assert fleet.slots == 2
    assert fleet.berth(study.propose().number)["bundle"] == {"CPU": 4.0, "GPU": 1.0}
    world.nodes.pop()
    world.now += LOOK_SECONDS
    fleet.has_room  # noqa: B018
    assert fleet.berth(study.propose().number)["bundle"]["GPU"] == 1, "it waits for the next"


def test_where_machines_are_started_on_demand_the_default_is_a_gpu(world, study):
    world.scales = True
    fleet = world.fleet(study, None)
    assert fleet.has_room
    assert fleet.berth(study.propose().number)["bundle"] == {"CPU": 1.0, "GPU": 1.0}


def test_a_trial_asks_ray_for_what_the_space_says(world, study):
    world.nodes.append(node("d", {"zone": "x"}, CPU=4.0, GPU=1.0, memory=2.0**40, fast=1.0))
    wanted = {"cpu": 2, "gpu": 0.5, "memory": 3, "custom": {"fast": 0.5}, "labels": {"zone": "in(y, x)"}}
    fleet = world.fleet(study, wanted)
    assert fleet.has_room
    group = placement({BERTH: fleet.berth(study.propose().number)})
    assert group.bundles == [{"CPU": 2.0, "GPU": 0.5, "memory": 3 * 2**30, "fast": 0.5}]
    assert group._bound.arguments["bundle_label_selector"] == [{"zone": "in(y,x)"}], "as Ray reads it"
    assert fleet.slots == 2


def test_a_trial_that_loses_its_process_is_proposed_again_elsewhere(world, study):
    fleet = world.fleet(study)
    number = start(study, fleet, "a")
    epoch(study, fleet, number, 1)
    died(fleet, number)
    row = study.store.trial(number)
    assert (row.state, row.reason) == (
        "INTERRUPTED",
        "lost its process on host-a (aaaaaaaa), goes on elsewhere: it crashed",
    )
    assert study.propose().number == number
    assert fleet.berth(number)["labels"] == {NODE_ID: f"!in({'a' * 8})"}
    assert study.store.trial(number).state == "RUNNING"


def test_the_slot_that_one_trial_avoids_is_another_s(world, study):
    fleet = world.fleet(study)
    first = start(study, fleet, "a")
    for place in "bc":
        start(study, fleet, place)
    died(fleet, first)
    assert fleet.has_room
    assert study.propose().number == first
    fleet.berth(first)
    assert fleet.has_room, "it does not go to the free machine"
    start(study, fleet, "a")
    assert not fleet.has_room


def test_a_trial_that_avoids_a_machine_gets_the_next_slot_elsewhere(world, study):
    fleet = world.fleet(study)
    first, second, third = (start(study, fleet, place) for place in "abc")
    died(fleet, first)
    assert fleet.has_room
    assert study.propose().number == first
    fleet.berth(first)
    start(study, fleet, "a")
    study.end(second, "epochs")
    fleet.ended(second)
    assert not fleet.has_room, "or new trials would take every slot that comes free"
    fleet.started(first, Actor("bbbbbbbb"))
    study.end(third, "epochs")
    fleet.ended(third)
    assert fleet.has_room


def test_a_trial_does_not_step_aside_for_a_machine_that_died(world, study):
    world.nodes[2:] = []
    fleet = world.fleet(study)
    first, second = start(study, fleet, "a"), start(study, fleet, "b")
    died(fleet, first)
    assert study.propose().number == first
    fleet.berth(first)
    del world.nodes[0]  # Ray notices some seconds later
    world.now += LOOK_SECONDS
    study.end(second, "epochs")
    fleet.ended(second)
    assert not fleet.has_room
    fleet.started(first, Actor("bbbbbbbb"))


def test_on_a_single_machine_there_is_no_elsewhere(world, study):
    world.nodes[1:] = []
    fleet = world.fleet(study)
    number = start(study, fleet, "a")
    died(fleet, number)
    assert study.propose().number == number
    assert fleet.berth(number)["labels"] == {}


def test_losses_in_a_row_end_a_trial_but_not_those_with_an_epoch_in_between(world, study):
    world.nodes[1:] = []
    fleet = world.fleet(study)
    number = start(study, fleet, "a")
    for done in range(1, 8):
        epoch(study, fleet, number, done)
        died(fleet, number)
        assert study.propose().number == number
        fleet.berth(number)
        fleet.started(number, Actor("aaaaaaaa"))
    for _ in range(MAX_LOSSES - 2):
        died(fleet, number)
        assert start(study, fleet, "a") == number
    died(fleet, number, "segfault")
    row = study.store.trial(number)
    assert (row.state, row.reason) == ("FAILED", f"lost: its process died {MAX_LOSSES} times: segfault")


def test_a_checkpoint_reported_again_is_no_progress(world, study):
    world.nodes[1:] = []
    fleet = world.fleet(study)
    number = start(study, fleet, "a")
    epoch(study, fleet, number, 1)
    for _ in range(MAX_LOSSES):
        died(fleet, number)
        if study.store.trial(number).state == "FAILED":
            break
        assert start(study, fleet, "a") == number
        epoch(study, fleet, number, 1)
    assert study.store.trial(number).state == "FAILED"


def test_machines_may_die_as_often_as_they_like(world, study):
    fleet = world.fleet(study)
    number = start(study, fleet, "a")
    for count in range(10):
        world.nodes[:] = [node(f"n{count}"), node("b")]
        died(fleet, number)
        assert study.propose().number == number
        fleet.berth(number)
        fleet.started(number, Actor(f"n{count}" * 8))
    assert study.store.trial(number).state == "RUNNING"


def test_a_bad_machine_ends_no_search_and_is_named(world, study):
    fleet = world.fleet(study)
    numbers = []
    for _ in range(NODE_LOSSES):
        assert fleet.has_room
        number = start(study, fleet, "b")
        numbers.append(number)
        # The one that is proposed again goes elsewhere, and the next one goes there.
        died(fleet, number, "no space in /dev/shm")
        assert study.propose().number == number
        fleet.berth(number)
        fleet.started(number, Actor("aaaaaaaa"))
    assert world.notes == [
        "host-b (bbbbbbbb) is avoided from now on: 3 trials lost their processes there and none finished an epoch in "
        "between. The last said: no space in /dev/shm"
    ]
    assert not study.must_stop
    assert {study.store.trial(number).state for number in numbers} == {"RUNNING"}
    world.now += LOOK_SECONDS
    fleet.has_room  # noqa: B018
    assert fleet.slots == 2
    assert fleet.berth(study.propose().number)["labels"] == {NODE_ID: f"!in({'b' * 8})"}
    assert world.published[-1].avoided == ("b" * 8,)


def test_the_last_machine_is_not_avoided(world, study):
    world.nodes[1:] = []
    fleet = world.fleet(study)
    for _ in range(2 * NODE_LOSSES):
        number = start(study, fleet, "a")
        died(fleet, number)
    assert not world.notes


UNFIT = "node host-b (bbbbbbbb): must have torch 2.9 as the driver does, but got 1.0. Install it there."


def test_an_unfit_machine_is_named_its_trials_go_on_elsewhere_and_no_others_go_there(world, study):
    fleet = world.fleet(study)
    assert fleet.has_room
    numbers = {place: start(study, fleet, place) for place in "abc"}
    fleet.exclude("b" * 8, [UNFIT])
    assert world.notes == [f"{UNFIT} It gets no trials of this run; the others go on."]
    assert [actor.place for actor in world.killed] == ["b" * 8]
    died(fleet, numbers["b"])
    row = study.store.trial(numbers["b"])
    assert (row.state, row.reason) == (
        "INTERRUPTED",
        "lost its process on host-b (bbbbbbbb), goes on elsewhere: no trial can run there",
    )
    fleet.exclude("b" * 8, [UNFIT])
    assert len(world.notes) == 1, "it is said once"
    world.now += LOOK_SECONDS
    fleet.has_room  # noqa: B018
    assert fleet.slots == 2
    assert study.propose().number == numbers["b"]
    assert fleet.berth(numbers["b"])["labels"] == {NODE_ID: f"!in({'b' * 8})"}
    assert not study.must_stop


def test_losses_on_unfit_machines_end_no_trial(world, study):
    world.nodes.extend(node(name) for name in "defg")
    fleet = world.fleet(study)
    number = study.propose().number
    for place in "bcdefg":
        fleet.berth(number)
        fleet.started(number, Actor(place * 8))
        fleet.exclude(place * 8, [UNFIT])
        died(fleet, number)
        assert study.propose().number == number
    assert not [note for note in world.notes if "avoided from now on" in note], "they are named once"


def test_a_process_that_starts_on_an_unfit_machine_is_ended(world, study):
    fleet = world.fleet(study)
    number = study.propose().number
    fleet.berth(number)
    fleet.exclude("b" * 8, [UNFIT])
    fleet.started(number, Actor("b" * 8))
    assert [actor.place for actor in world.killed] == ["b" * 8]


def test_the_search_stops_only_when_no_fit_machine_is_left_and_names_all_that_are_there(world, study):
    fleet = world.fleet(study)
    for name in "abc"[:2]:
        fleet.exclude(name * 8, [UNFIT.replace("b", name)])
    del world.nodes[0]
    with pytest.raises(UserError) as caught:
        fleet.exclude("c" * 8, [UNFIT.replace("b", "c")])
    assert caught.value.problems == (UNFIT, UNFIT.replace("b", "c"))


def test_a_study_that_waits_says_that_machines_are_avoided(world, study):
    fleet = world.fleet(study)
    fleet.exclude("b" * 8, [UNFIT])
    del world.nodes[2], world.nodes[0]
    world.now += LOOK_SECONDS
    assert fleet.has_room
    fleet.berth(study.propose().number)
    world.pass_time(fleet, 10, num_waiting=1)
    assert world.waits == [
        "waiting for 1 CPU: no machine with cpu=1, gpu=0 is there (1 machine, the largest has 1 CPU and 0 GPUs; 1 is "
        "avoided)"
    ]


def test_a_trial_that_ray_ends_for_memory_is_infeasible_and_not_lost(world, study):
    fleet = world.fleet(study)
    number = start(study, fleet, "a")
    fleet.lost(number, ray.exceptions.OutOfMemoryError("low on memory\nadvice"), "low on memory")
    row = study.store.trial(number)
    assert (row.state, row.reason) == ("INFEASIBLE", "out-of-memory: its process was ended: low on memory")


def test_the_loss_of_a_process_whose_trial_had_ended_is_nothing(world, study):
    fleet = world.fleet(study)
    number = start(study, fleet, "a")
    study.end(number, "epochs")
    fleet.ended(number)
    died(fleet, number)
    assert study.store.trial(number).state == "COMPLETE"


def test_a_stalled_process_is_ended_said_and_its_trial_started_elsewhere(world, study):
    fleet = world.fleet(study)
    number, other = start(study, fleet, "a"), start(study, fleet, "b")
    for done in (1, 2):
        world.pass_time(fleet, 4)
        epoch(study, fleet, number, done)
        epoch(study, fleet, other, done)
    for _ in range(6):
        world.pass_time(fleet, 110)
        fleet.reported(other, make_report(2, 0.1) | {"seconds": 0.0})
    (actor,) = world.killed
    assert actor.place == "aaaaaaaa"
    assert world.notes == ["t0000 on host-a (aaaaaaaa) reported nothing for 10 min: it is started again elsewhere"]
    died(fleet, number, "The actor died unexpectedly")
    assert study.store.trial(number).reason.endswith("goes on elsewhere: no report for 10 min")
    assert fleet.berth(study.propose().number)["labels"] == {NODE_ID: f"!in({'a' * 8})"}


def test_a_process_that_does_not_take_its_next_trial_is_ended_too(world, study):
    fleet = world.fleet(study)
    number = study.propose().number
    fleet.berth(number)
    actor = Actor("aaaaaaaa")
    world.pass_time(fleet, 590, resetting={number: actor})
    assert not world.killed
    world.pass_time(fleet, 30, resetting={number: actor})
    assert world.killed == [actor], "once"
    died(fleet, number)
    assert study.propose().number == number


def test_a_study_says_what_it_waits_for_until_it_has_it(world, study):
    world.nodes[:] = [node("a", CPU=2.0)]
    fleet = world.fleet(study, {"cpu": 4, "gpu": 1})
    assert fleet.has_room
    number = study.propose().number
    fleet.berth(number)
    world.pass_time(fleet, 4, num_waiting=1)
    assert not world.waits, "a moment is not worth a word"
    world.pass_time(fleet, 10, num_waiting=1)
    assert world.waits == [
        "waiting for 1 GPU: no machine with cpu=4, gpu=1 is there (1 machine, the largest has 2 CPUs and 0 GPUs)"
    ]
    fleet.started(number, Actor("aaaaaaaa"))
    world.pass_time(fleet, 2)
    assert world.waits[1:] == [""]


def test_a_study_says_that_the_machines_are_in_use(world, study):
    fleet = world.fleet(study)
    for _ in range(2):
        fleet.berth(study.propose().number)
    world.pass_time(fleet, 10, num_waiting=2)
    assert world.waits == ["waiting for 2 CPUs: the machines with cpu=1, gpu=0 are in use"]


def test_a_trial_whose_only_machine_went_is_spoken_of_while_others_run(world, study):
    world.nodes[:] = [node("a"), node("b", CPU=4.0)]
    fleet = world.fleet(study, {"cpu": 4, "gpu": 0})
    other, number = start(study, fleet, "b"), start(study, fleet, "b")
    del world.nodes[1]
    died(fleet, number)
    assert study.propose().number == number
    fleet.berth(number)
    world.pass_time(fleet, 10, num_waiting=1)
    assert study.store.trial(other).state == "RUNNING"
    assert world.waits == [
        "waiting for 4 CPUs: no machine with cpu=4, gpu=0 is there (1 machine, the largest has 1 CPU and 0 GPUs)"
    ]


def test_seconds_of_different_kinds_of_machines_are_not_compared_in_silence(world, tmp_path):
    world.nodes[:] = [node("a", CPU=8.0, GPU=1.0, **{"accelerator_type:A100": 1.0}), node("b", CPU=8.0, GPU=1.0)]
    study = make_study(tmp_path, trials=20, asha=False, objective={"per": "seconds"})
    fleet = world.fleet(study, {"cpu": 1, "gpu": 1})
    fleet.has_room  # noqa: B018
    start(study, fleet, "a")
    start(study, fleet, "b")
    for _ in range(3):
        world.now += LOOK_SECONDS
        fleet.has_room  # noqa: B018
    (note,) = world.notes
    assert note.startswith("objective: trials run on machines of different kinds (8 CPUs, A100), whose seconds")
