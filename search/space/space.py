"""Search spaces: sampled keys, fixed keys, and how a study measures a trial."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.config import TrialConfig
from search.space.conditions import DEFAULTS, holds
from search.space.domain import Domain
from search.space.settings import (
    AshaSettings,
    DataSource,
    Direction,
    Limits,
    ObjectiveSettings,
    Resources,
    direction_of,
)
from search.study.asha import Asha

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from search.sampling.sampler import StudySampler

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
    asha: AshaSettings | None = field(default_factory=AshaSettings)
    """When to stop trials early. None: never."""
    resources: Resources | None = None
    """Resources that one trial occupies. None: a GPU if there is one, else a CPU."""
    data: DataSource | None = None
    """The data, unless the command names it."""
    limits: Limits | None = None
    """Limits that end the study before its trials are done."""
    objective: ObjectiveSettings | None = None
    """The cost that is weighed against the metric. None: the metric alone ranks."""
    domains: Mapping[str, Domain]
    """The sampled keys, each after the keys that its condition names, otherwise in the order of the file."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """The keys that have one value in all trials."""
    start_from: tuple[Params, ...] = ()
    """Configs to try first, in this order: values of some sampled keys."""

    @property
    def direction(self) -> Direction:
        """Which values of the metric are better; larger ones for a metric that this project does not know."""
        return direction_of(self.metric)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two spaces share exactly if their trials may stand in one study.

        It covers what a trial's result depends on: metric, direction, epochs, seed, asha, objective, sampled and
        fixed keys. It leaves out trials, keep, resources, limits, data (whose content has a fingerprint of its own) and
        start_from.
        """
        content = self.to_json()
        for name in ("trials", "keep", "resources", "limits", "data", "start_from"):
            content.pop(name, None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of every key in a trial with these params: sampled, else fixed, else the default."""
        return {**DEFAULTS, **self.fixed, **params}

    def is_active(self, key: str, params: Mapping[str, Any]) -> bool:
        """Return whether the sampled key ``key`` has a value, given ``params`` of the keys it depends on."""
        when = self.domains[key].when
        return not when or holds(when, self.values(params))

    def suggest(self, ask: Callable[[str], Any]) -> Params:
        """Collect the values of all active keys: calls ``ask`` for each, conditions first, and for no inactive key."""
        params: Params = {}
        for key in self.domains:
            if self.is_active(key, params):
                params[key] = ask(key)
        return params

    def sample(self, rng: np.random.Generator, start: Mapping[str, Any] | None = None) -> Params:
        """Draw values of all active keys; those in ``start`` are taken from there."""
        start = start or {}
        return self.suggest(lambda key: start[key] if key in start else self.domains[key].sample(rng))

    def distribution(self, key: str) -> "BaseDistribution":
        """Return the Optuna distribution of a sampled key."""
        return self.domains[key].distribution()

    def config(self, params: Mapping[str, Any], *, seed: int) -> TrialConfig:
        """Build the config of a trial with these params; ``data.root`` is left to the caller.

        Raises:
            UserError: the values do not go together.
        """
        return TrialConfig.from_flat(self.flat_config(params, seed=seed), where="trial")

    def flat_config(self, params: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
        """Return the values of :meth:`config` that differ from the defaults, by dotted key, unchecked."""
        of_study = {"train.epochs": self.epochs, "train.metric": self.metric, "train.seed": seed}
        return {**self.fixed, **params, **of_study}

    def make_asha(self) -> Asha:
        """Create the scheduler of a new study. With ``asha: off`` it has no rungs and stops nothing."""
        settings = self.asha or AshaSettings(grace=self.epochs)
        return Asha(settings.grace, settings.reduction, self.epochs)

    def make_sampler(self) -> "StudySampler":
        """Create the sampler of a new study."""
        from search.sampling.sampler import StudySampler  # it imports optuna, and this module

        return StudySampler(self, self.seed)

    @property
    def failures_count(self) -> bool:
        """Whether failed trials count among ``trials``: no, as a failure says nothing about the config."""
        return False

    def includes(self, params: Mapping[str, Any]) -> bool:
        """Return whether a trial of the study is one of those to run now: all are."""
        return True

    def seed_index(self, params: Mapping[str, Any], number: int) -> int:
        """Return the trial's number: no two trials share a seed."""
        return number

    def describe(self) -> list[str]:
        """Write the space as lines for people."""
        width = max(map(len, self.domains), default=0)
        rungs = ", ".join(map(str, self.make_asha().rungs))
        lines = [
            f"{self.direction} {self.metric}: {self.trials} trials of {self.epochs} epochs, seed {self.seed}",
            f"ASHA: about 1 trial in {self.asha.reduction} goes on from each of the epochs {rungs}"
            if self.asha and rungs
            else "ASHA: off, every trial is trained to the end",
        ]
        if self.objective:
            lines.append(f"objective: {self.metric} per {self.objective}")
        if self.limits:
            lines.append(f"limits: {self.limits.describe(self.metric)}")
        for key, domain in self.domains.items():
            conditions = [f"{other} is {' or '.join(map(str, values))}" for other, values in domain.when.items()]
            line = f"{key:<{width}}  {domain}"
            if conditions:
                line += f"   when {' and '.join(conditions)}"
            lines.append(line)
        if self.fixed:
            lines.append("fixed: " + ", ".join(f"{key}={value}" for key, value in self.fixed.items()))
        lines += ["first: " + ", ".join(f"{key}={value}" for key, value in start.items()) for start in self.start_from]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the content of a space file for this space, with every default written out.

        :func:`search.space.parse_space` reads it back.
        """
        content: dict[str, Any] = {
            name: getattr(self, name) for name in ("metric", "direction", "trials", "epochs", "seed", "keep")
        }
        content["asha"] = self.asha.model_dump() if self.asha else False
        for name in ("resources", "data", "limits", "objective"):
            if part := getattr(self, name):
                content[name] = part.model_dump(exclude_none=True)
        content["space"] = {key: domain.to_json() for key, domain in self.domains.items()} | dict(self.fixed)
        if self.start_from:
            content["start_from"] = [dict(start) for start in self.start_from]
        return content
