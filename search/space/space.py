"""A search space: sampled keys, fixed keys, and how a study measures them."""

import hashlib
import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from cellseg.config import TrialConfig
from cellseg.names import counted
from search.space.conditions import DEFAULTS, holds
from search.space.domain import Domain
from search.space.settings import (
    DEFAULT_TRACKERS,
    AshaSettings,
    DataSource,
    Direction,
    Limits,
    ObjectiveSettings,
    Resources,
    SamplerName,
    StallSettings,
    StudyStart,
    Tracker,
    direction_of,
)

Params = dict[str, Any]
"""Values of the sampled keys that are active, by dotted key."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space.

    :func:`search.space.load_space` returns checked ones. One that is built directly is not checked: a benchmark can
    search over keys that no config has, as long as it does not ask for :meth:`config`.
    """

    metric: str
    """Name of the validation metric that ranks and prunes."""
    trials: int
    """Number of trials that the study finishes, those of earlier runs included."""
    epochs: int
    """Full length of a trial."""
    seed: int = 0
    """The study's seed; everything random in it derives from this and a trial's number."""
    keep: int = 3
    """Checkpoints of this many best trials stay on disk."""
    max_slots: int | None = None
    """The most trials side by side. None: as many as the cluster holds."""
    priority: float = 1.0
    """Its part of a cluster that several studies share, in proportion to theirs."""
    stall: StallSettings = field(default_factory=StallSettings)
    """When a trial that reports nothing is started again elsewhere."""
    track: tuple[Tracker, ...] = DEFAULT_TRACKERS
    """Tools that get a copy of the trials."""
    asha: AshaSettings | None = field(default_factory=AshaSettings)
    """When to stop trials early. None: never."""
    sampler: SamplerName = "auto"
    """What proposes configs: this project's own sampler, or one of Optuna's by its name."""
    resources: Resources | None = None
    """The CPUs and GPUs that one trial occupies. None: a GPU where there is one, else a CPU."""
    data: DataSource | None = None
    """The data, unless the command names it."""
    limits: Limits | None = None
    """The limits that end the study early."""
    objective: ObjectiveSettings | None = None
    """The cost that is weighed against the metric. None: the metric alone ranks."""
    domains: Mapping[str, Domain]
    """The sampled keys, each after the keys that its condition names, otherwise in the order of the file."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The keys that have one value in all trials."""
    start_from: tuple[Params, ...] = ()
    """Configs to try first, in this order: values of some sampled keys."""
    start_studies: tuple[StudyStart, ...] = ()
    """Earlier studies whose best configs come next."""

    @property
    def starts(self) -> tuple[Params, ...]:
        """All start configs in their order, those that were taken from earlier studies among them."""
        return (*self.start_from, *(config for start in self.start_studies for config in start.taken or ()))

    @property
    def direction(self) -> Direction:
        """Which values of the metric are better; larger ones for a metric that this project does not know."""
        return direction_of(self.metric)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two spaces share exactly if their trials may stand in one study.

        It covers what a trial's result depends on, and how trials were chosen: metric, direction, epochs, seed, asha,
        sampler, objective, sampled and fixed keys. It leaves out trials, keep, max_slots, priority, stall, track,
        resources, limits, data (whose content has a fingerprint of its own) and start_from.
        """
        content = self.identity
        if self.sampler == "auto":  # as before there were others: studies of that time can be continued
            del content["sampler"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """What :attr:`fingerprint` covers, as JSON values."""
        content = self.to_json()
        for name in ("trials", "keep", "max_slots", "priority", "stall", "track", "resources", "limits", "data"):
            content.pop(name, None)
        content.pop("start_from", None)
        return content | {"sampler": self.sampler}

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs at which ASHA stops trials; empty with ``asha: off``."""
        return self.asha.rungs(self.epochs) if self.asha else ()

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return every key's value in a trial with these params: sampled, else fixed, else default."""
        return {**DEFAULTS, **self.fixed, **params}

    def is_active(self, key: str, params: Mapping[str, Any]) -> bool:
        """Say whether the sampled key ``key`` has a value beside ``params``, the values of the keys it depends on."""
        when = self.domains[key].when
        return not when or holds(when, self.values(params))

    def sample(self, rng: np.random.Generator, start: Mapping[str, Any] = MappingProxyType({})) -> Params:
        """Draw values of all active keys; those in ``start`` are taken from there."""
        return sample(self.domains, self.values({}), rng, start)

    def config(self, params: Mapping[str, Any], *, seed: int) -> TrialConfig:
        """Return the config of a trial with these params; ``data.root`` is left to the caller.

        Raises:
            UserError: the values do not go together.
        """
        return TrialConfig.from_flat(self.flat_config(params, seed=seed), where="trial")

    def flat_config(self, params: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
        """Return the values of :meth:`config` that differ from the defaults, by dotted key, unchecked."""
        of_study = {"train.epochs": self.epochs, "train.metric": self.metric, "train.seed": seed}
        return {**self.fixed, **params, **of_study}

    @property
    def is_search(self) -> bool:
        """Whether trials compete and the best one is wanted."""
        return True

    @property
    def more_trials(self) -> str:
        """The option that asks for more trials."""
        return "--trials N"

    @property
    def failures_count(self) -> bool:
        """Whether failed trials count among ``trials``: no, as a failure says nothing about the config."""
        return False

    def includes(self, params: Mapping[str, Any]) -> bool:
        """Say whether a trial of the study is to be run now: all are."""
        return True

    def seed_index(self, params: Mapping[str, Any], number: int) -> int:
        """Return the trial's number: no two trials share a seed."""
        return number

    def describe(self) -> list[str]:
        """Describe the space in lines for people."""
        width = max(map(len, self.domains), default=0)
        rungs = ", ".join(map(str, self.rungs))
        lines = [
            f"{self.direction} {self.metric}: {counted(self.trials, 'trial')} of {counted(self.epochs, 'epoch')}, "
            f"seed {self.seed}",
            f"ASHA: about 1 trial in {self.asha.reduction} continues past each of the epochs {rungs}"
            if self.asha and rungs
            else "ASHA: off, every trial is trained to the end",
        ]
        if self.sampler != "auto":
            lines.append(f"sampler: {self.sampler}, one of Optuna's")
        if self.objective:
            lines.append(f"objective: {self.metric} per {self.objective}")
        if self.limits:
            lines.append(f"limits: {self.limits.describe(self.metric)}")
        if self.max_slots is not None:
            lines.append(f"at most {counted(self.max_slots, 'trial')} side by side")
        if self.priority != 1:
            lines.append(f"priority {self.priority:g} among the studies of a cluster")
        for key, domain in self.domains.items():
            conditions = [f"{other} is {' or '.join(map(str, values))}" for other, values in domain.when.items()]
            when = f"   when {' and '.join(conditions)}" if conditions else ""
            lines.append(f"{key:<{width}}  {domain}{when}")
        if self.fixed:
            lines.append("fixed: " + ", ".join(f"{key}={value}" for key, value in self.fixed.items()))
        lines += ["first: " + ", ".join(f"{key}={value}" for key, value in start.items()) for start in self.start_from]
        for earlier in self.start_studies:
            count = "the best" if earlier.taken is None else len(earlier.taken)
            lines.append(f"first: {count} configs of study {earlier.study}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the content of a space file that makes this space, every default written out.

        :func:`search.space.parse_space` reads it back.
        """
        content: dict[str, Any] = {
            name: getattr(self, name) for name in ("metric", "direction", "trials", "epochs", "seed", "keep")
        }
        if self.max_slots is not None:
            content["max_slots"] = self.max_slots
        if self.priority != 1:
            content["priority"] = self.priority
        if self.stall != StallSettings():
            content["stall"] = self.stall.model_dump()
        if self.track != DEFAULT_TRACKERS:
            content["track"] = list(self.track)
        content["asha"] = self.asha.model_dump() if self.asha else False
        if self.sampler != "auto":
            content["sampler"] = self.sampler
        for name in ("resources", "data", "limits", "objective"):
            if part := getattr(self, name):
                content[name] = part.model_dump(exclude_none=True)
        content["space"] = {key: domain.to_json() for key, domain in self.domains.items()} | dict(self.fixed)
        if self.start_from or self.start_studies:
            studies = [start.model_dump(exclude_none=True) for start in self.start_studies]
            content["start_from"] = [*(dict(start) for start in self.start_from), *studies]
        return content


def fill(domains: Mapping[str, Domain], unsampled: Mapping[str, Any], value_of: Callable[[str], Any], /) -> Params:
    """Choose the values of all active keys.

    Args:
        domains: the sampled keys, each after the keys that its condition names.
        unsampled: what a key has where it is not sampled, for the conditions.
        value_of: called for every active key in order, and for no inactive one.
    """
    params: Params = {}
    known: Mapping[str, Any] = ChainMap(params, unsampled)  # type: ignore[arg-type]  # it is only read
    for key, domain in domains.items():
        if not domain.when or holds(domain.when, known):
            params[key] = value_of(key)
    return params


def sample(
    domains: Mapping[str, Domain],
    unsampled: Mapping[str, Any],
    rng: np.random.Generator,
    start: Mapping[str, Any] = MappingProxyType({}),
) -> Params:
    """Draw values of all active keys as :func:`fill` does; those in ``start`` are taken from there."""
    return fill(domains, unsampled, lambda key: start[key] if key in start else domains[key].sample(rng))
