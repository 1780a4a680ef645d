"""Shares: how the slots of one cluster are divided among the studies that run on it.

Each study's driver tells the others what it asks for, in Ray's key-value store, and each computes the same division.
Nobody is in charge, and a driver that dies is soon left out.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from ray.experimental import internal_kv

from search.cluster.slots import RAY_UNITS, Node, TrialResources, bundle, has_labels

NAMESPACE = "cellseg-search"
SILENT_SECONDS = 30.0
"""A study whose entry has not changed for so long, on this driver's own clock, is gone."""
HALF_LIFE = 600.0
"""Seconds after which slot time that a study used counts half."""
USAGE_STEP = 300.0
"""Slot-seconds by which the usage of two studies must differ before the odd slot changes hands."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a study asks of the cluster."""

    study: str
    """Name that no other driver has."""
    resources: TrialResources
    """What one of its trials occupies."""
    demand: int
    """The trials that it would run side by side, at most."""
    usage: float = 0.0
    """Slot-seconds that it used lately, see :data:`HALF_LIFE`."""
    avoided: tuple[str, ...] = ()
    """Ids of machines that it does not use."""
    priority: float = 1.0
    """Of two studies with the same needs, one of priority 2 gets twice the slots of one of priority 1."""


def fair_slots(nodes: Sequence[Node], claims: Collection[Claim]) -> dict[str, int]:
    """Divide the slots: in turn, the study with the smallest part of what it could have alone, divided by its priority,
    gets one more.

    That is weighted dominant-resource fairness (Ghodsi et al. 2011) with whole trials. Of equals, the one that used
    less lately, for its priority, goes first, so that where there are more studies than slots they take turns. What a
    study does not ask for, or what does not fit its trials, is left to the others.
    """
    alone = {claim.study: _fill([_Space(node) for node in nodes], claim) for claim in claims}
    spaces = [_Space(node) for node in nodes]
    places = {claim.study: 0 for claim in claims}  # machines before this index take no more of its trials
    given = {claim.study: 0 for claim in claims}
    waiting = {claim.study: claim for claim in claims if claim.demand > 0 and alone[claim.study] > 0}
    while waiting:
        claim = min(
            waiting.values(),
            key=lambda claim: (
                given[claim.study] / (alone[claim.study] * claim.priority),
                claim.usage / claim.priority // USAGE_STEP,
                claim.study,
            ),
        )
        name = claim.study
        while places[name] < len(spaces) and not spaces[places[name]].take(claim):
            places[name] += 1
        if places[name] < len(spaces):
            given[name] += 1
        if places[name] == len(spaces) or given[name] >= claim.demand:
            del waiting[name]
    return given


def _fill(spaces: Sequence["_Space"], claim: Claim) -> int:
    """Count the trials that a study has room for alone."""
    count = 0
    for space in spaces:
        while space.take(claim):
            count += 1
    return count


class _Space:
    """The resources of a machine that are not given away, in Ray's ten-thousandths."""

    def __init__(self, node: Node):
        self._node = node
        self._free = {name: round(amount * RAY_UNITS) for name, amount in node["Resources"].items()}
        self._gpus = [RAY_UNITS] * int(node["Resources"].get("GPU", 0))

    def take(self, claim: Claim) -> bool:
        """Give a slot to a trial, if there is one."""
        wanted = {name: max(round(amount * RAY_UNITS), 1) for name, amount in bundle(claim.resources).items()}
        share = wanted.pop("GPU", 0)
        gpu = next((index for index, free in enumerate(self._gpus) if free >= share), None) if share else None
        if (
            self._node.get("NodeID") in claim.avoided
            or not has_labels(self._node, claim.resources.get("labels", {}))
            or (share and gpu is None)
            or any(self._free.get(name, 0) < amount for name, amount in wanted.items())
        ):
            return False
        for name, amount in wanted.items():
            self._free[name] -= amount
        if gpu is not None:
            self._gpus[gpu] -= share
        return True


class Usage:
    """Slot time of a study, of which older parts count less and less."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def add(self, running: int, now: float) -> None:
        """Take in that so many trials ran since the last call."""
        passed = 0.0 if self._since is None else max(0.0, now - self._since)
        self.seconds = self.seconds * math.pow(0.5, passed / HALF_LIFE) + running * passed
        self._since = now


class Register:
    """The studies that run on this cluster now, as their drivers know of each other.

    Args:
        key: name of this study's driver, which no other has.
        clock: seconds since any moment. Clocks of different machines are never compared.
    """

    def __init__(self, key: str, clock: Callable[[], float] = time.monotonic):
        self._key = key
        self._clock = clock
        self._beat = 0
        self._seen: dict[str, tuple[int, float]] = {}  # the last beat of each other driver, and when it came

    def publish(self, claim: Claim) -> list[Claim]:
        """Tell the others this study's claim; return theirs."""
        self._beat += 1
        content = json.dumps({"beat": self._beat, "claim": asdict(claim)})
        internal_kv._internal_kv_put(self._key, content, overwrite=True, namespace=NAMESPACE)
        return self._others()

    def withdraw(self) -> None:
        """Leave: the others may have this study's slots."""
        internal_kv._internal_kv_del(self._key, namespace=NAMESPACE)

    def _others(self) -> list[Claim]:
        now, claims = self._clock(), []
        for raw in internal_kv._internal_kv_list("", namespace=NAMESPACE):
            key = raw.decode()
            if key == self._key or not (value := internal_kv._internal_kv_get(key, namespace=NAMESPACE)):
                continue
            beat, claim = _parse(value)
            if claim is None:
                continue
            former, since = self._seen.get(key, (None, now))
            if beat != former:
                since = now
            self._seen[key] = beat, since
            if now - since < SILENT_SECONDS:
                claims.append(claim)
            else:  # it died; if not, its next beat brings it back
                internal_kv._internal_kv_del(key, namespace=NAMESPACE)
        return claims


def _parse(value: bytes) -> tuple[int, Claim | None]:
    """Read an entry; one of another version of this package that says something else is no claim."""
    try:
        content = json.loads(value)
        fields: Mapping = content["claim"]
        return content["beat"], Claim(**{**fields, "avoided": tuple(fields["avoided"])})
    except (ValueError, KeyError, TypeError):
        return 0, None
