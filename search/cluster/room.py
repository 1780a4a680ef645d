"""Room: how many trials a study may have side by side on the cluster as it is now, and what each occupies."""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from search.cluster.growth import Growth, has_autoscaler
from search.cluster.shares import Claim, Register, Usage, fair_slots
from search.cluster.slots import (
    Node,
    TrialResources,
    complete,
    describe,
    describe_largest,
    fitting,
    has_gpu,
    live_nodes,
    node_name,
    slots_of,
    trial_resources,
)

LOOK_SECONDS = 2.0
"""The cluster is looked at this often. Machines that join get trials within that time and a process's start."""


class Room:
    """Follows the cluster.

    Args:
        study: name of the study's driver, which no other has.
        wanted: what the space says that a trial occupies; None for the default.
        max_slots: bound of the study's trials side by side.
        priority: the study's, among those that share the cluster.
        shared: the cluster is not this driver's own: other studies may use it, and machines may join.
        clock: seconds since any moment.

    Raises:
        UserError: a trial fits on no machine of a cluster that is the driver's own.
    """

    def __init__(
        self,
        study: str,
        wanted: TrialResources | None,
        *,
        max_slots: int | None = None,
        priority: float = 1.0,
        shared: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._study, self._wanted, self._max_slots, self._clock = study, wanted, max_slots, clock
        self._priority = priority
        self.avoided: set[str] = set()
        """Ids of machines that get no trials."""
        self.nodes: Sequence[Node] = live_nodes()
        """The machines that are up."""
        self.resources: dict[str, Any] = trial_resources(wanted, grows=shared)
        """What a trial that starts now occupies."""
        self.capacity = 0
        """Trials of this study that the machines hold, whoever else is there."""
        self.num_others = 0
        """Other studies on the cluster."""
        self.slots = 1
        """Trials that the study may have side by side, at least 1: what waits is seen."""
        self._register = Register(study, clock) if shared else None
        self._growth = Growth() if shared else None
        self._scales = False
        self._usage = Usage()
        self._looked: float | None = None

    @property
    def may_grow(self) -> bool:
        """Whether machines may join."""
        return self._growth is not None

    def look(self, demand: int, running: int) -> bool:
        """Look at the cluster, unless that was just done; return whether it was.

        Args:
            demand: trials that the study would run side by side, at most.
            running: those that run.
        """
        now = self._clock()
        if self._looked is not None and now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        self.nodes = live_nodes()
        self._usage.add(running, now)
        self._scales = self.may_grow and has_autoscaler()
        self.resources = self._decide()
        usable = fitting(self.nodes, self.resources, self.avoided)
        self.capacity = sum(slots_of(node, self.resources) for node in usable)
        most = demand if self._max_slots is None else min(demand, self._max_slots)
        share = min(self.capacity, most)
        if self._register is not None:
            claim = Claim(
                self._study, self.resources, most, self._usage.seconds, tuple(sorted(self.avoided)), self._priority
            )
            others = self._register.publish(claim)
            self.num_others = len(others)
            if others:
                share = fair_slots(self.nodes, [claim, *others])[claim.study]
        self.slots = max(1, share)
        if self._growth is not None:
            self._growth.ask(self._wish(most), self.resources)
        return True

    def _decide(self) -> dict[str, Any]:
        """What a trial occupies by default depends on the machines that there are, now and not at the start."""
        if self._wanted is not None:
            return complete(self._wanted, self.nodes)
        # A trial that has had a GPU waits for the next one rather than for a CPU to finish it.
        return complete({"gpu": 1 if has_gpu(self.nodes) or self._scales or self.resources["gpu"] else 0}, self.nodes)

    def _wish(self, most: int) -> int:
        """Count the slots to be asked of the autoscaler beyond those there are: all, if the space bounds them; else as
        many again, so that a study that soon ends has not started a hundred machines."""
        if not self._scales:
            return 0
        missing = max(0, most - self.slots)
        return missing if self._max_slots is not None else min(missing, self.slots)

    def refresh(self) -> dict[str, Node]:
        """Return the machines that are up at this moment, by their ids."""
        self.nodes = live_nodes()
        return {node["NodeID"]: node for node in self.nodes}

    def fits(self, resources: TrialResources, avoided: Collection[str] = ()) -> bool:
        """Say whether some machine could take a trial if it was empty."""
        return bool(fitting(self.nodes, resources, avoided))

    def slots_on(self, node_ids: Collection[str]) -> int:
        """Count the trials that some machines hold; those that are gone hold none."""
        return sum(slots_of(node, self.resources) for node in self.nodes if node["NodeID"] in node_ids)

    def name_of(self, node_id: str) -> str:
        """Name a machine."""
        return next((node_name(node) for node in self.nodes if node["NodeID"] == node_id), "a machine that is gone")

    def elsewhere(self, nodes: Collection[str]) -> bool:
        """Say whether a trial also fits on a machine that is not one of these (ids), nor avoided anyway."""
        return self.fits(self.resources, self.avoided | set(nodes))

    def describe_lack(self, count: int, resources: TrialResources, avoided: Collection[str] = ()) -> str:
        """Describe what so many trials wait for."""
        unit, each = ("GPU", resources["gpu"]) if resources.get("gpu") else ("CPU", resources["cpu"])
        amount = count * each
        lack = f"waiting for {amount:g} {unit}{'' if amount == 1 else 's'}"
        usable = fitting(self.nodes, resources, avoided)
        if usable:
            return f"{lack}: the machines with {describe(resources)} are in use"
        found = f"{len(self.nodes)} machine{'' if len(self.nodes) == 1 else 's'}, {describe_largest(self.nodes)}"
        if without := sum(node["NodeID"] in self.avoided for node in self.nodes):
            found += f"; {without} {'is' if without == 1 else 'are'} avoided"
        return f"{lack}: no machine with {describe(resources)} is there ({found})"

    def close(self) -> None:
        """Leave the cluster to the others."""
        if self._register is not None:
            self._register.withdraw()
        if self._growth is not None:
            self._growth.close()
