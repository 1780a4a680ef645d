"""Settings of a space file, apart from the space itself."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cellseg.config import MINIMIZED, Count, Metric, Positive
from cellseg.errors import Problem, RuleError

Direction = Literal["maximize", "minimize"]
Cost = Literal["seconds", "parameters", "memory"]
"""A kind of cost, see :func:`search.cost.trial_cost`."""
COST_UNITS: Mapping[Cost, str] = {"seconds": "s/epoch", "parameters": "M parameters", "memory": "GiB"}
"""Unit of each kind of cost."""
LEAST_GPU_SHARE = 0.01
"""CUDA itself takes half a gigabyte of a GPU for each process."""
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
OWN_SETTINGS: Mapping[str, str] = {
    "cpu": "resources.cpu",
    "gpu": "resources.gpu",
    "memory": "resources.memory, in GiB",
    "object_store_memory": "resources.memory, in GiB",
}
"""Ray's resources that cannot be custom ones, and the setting to use instead."""
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_LABEL_KEY = re.compile(rf"(?:{_LABEL}/)?{_LABEL}")
_LABEL_SELECTOR = re.compile(rf"!?{_LABEL}|!?in\({_LABEL}(?:, ?{_LABEL})*\)")


def direction_of(metric: str) -> Direction:
    """Return which values of a metric are better."""
    return "minimize" if metric in MINIMIZED else "maximize"


def rung_epochs(grace: int, reduction: int, epochs: int) -> tuple[int, ...]:
    """Return ``grace * reduction ** k`` for every k that puts it below ``epochs``, the full length of a trial."""
    rungs: list[int] = []
    epoch = grace
    while epoch < epochs:
        rungs.append(epoch)
        epoch *= reduction
    return tuple(rungs)


def inner_names(parts: Mapping[str, type[BaseModel]]) -> list[str]:
    """List the dotted names of the settings inside nested mappings."""
    return [f"{part}.{name}" for part, model in parts.items() for name in model.model_fields]


def set_setting(
    content: dict[str, Any], key: str, value: Any, settings: Collection[str], parts: Mapping[str, type[BaseModel]]
) -> bool:
    """Set a setting of a file's ``content`` by its dotted name; returns False if there is no such setting.

    Args:
        settings: names at the top level of the file.
        parts: those among them that are mappings, with their models.
    """
    if key in settings:
        content[key] = value
    elif key in inner_names(parts):
        top, _, inner = key.partition(".")
        old = content.get(top)
        content[top] = (old if isinstance(old, dict) else {}) | {inner: value}
    else:
        return False
    return True


def missing_settings(content: Mapping[str, Any], examples: Mapping[str, Any]) -> list[Problem]:
    """Report the mandatory settings that ``content`` lacks, each with its example."""
    return [
        Problem(name, "must be given", "nothing", f"Write for example {name}: {example}.")
        for name, example in examples.items()
        if name not in content
    ]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AshaSettings(_Settings):
    """When to stop trials early, see :class:`search.study.asha.Asha`."""

    grace: Count = 1
    reduction: Annotated[int, Field(ge=2)] = 3

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Return the epochs at which trials of this full length are stopped, in order."""
        return rung_epochs(self.grace, self.reduction, epochs)


def auto_asha(epochs: int) -> AshaSettings:
    """Return what ``asha: auto`` stands for; docs/rungs.md has the figures that it follows from.

    Early values tell less than later ones, so half of the trials go on instead of a third, and there are more rungs: a
    good trial is rarely lost at one of them. The first lies at an eighteenth of the full length, at least after an
    epoch: epoch 1 of 12, 3 of 52.

    Args:
        epochs: full length of a trial, at least 1.
    """
    return AshaSettings(grace=max(1, round(epochs / 18)), reduction=2)


class Resources(_Settings):
    """Resources that one trial occupies, and the machines that it may run on."""

    cpu: Positive | None = None
    """CPU cores. None: one without a GPU; with one, its share of the machine's cores, for ``train.workers: auto``."""
    gpu: Annotated[float, Field(ge=0)] = 0
    """GPUs: 0, 1, or a share of one, whose memory is then limited to that share."""
    memory: Amount | None = None
    """GiB of the machine's main memory. None: not counted."""
    custom: dict[str, float] = {}
    """Amounts of Ray's other resources by name: those that machines were started with, and ``accelerator_type:KIND``,
    of which a machine with such GPUs has 1."""
    labels: dict[str, str] = {}
    """Labels that a machine must have, by key: a value or ``in(A, B)``; after ``!``, those that it must not have."""

    @field_validator("gpu")
    @classmethod
    def _one_gpu(cls, value: float) -> float:
        if value > 1:
            law = "a trial trains on one GPU or a share of it, so 0 <= gpu <= 1 must hold"
            remedy = "Write gpu: 1; more GPUs run more trials side by side."
            raise RuleError(Problem("", law, f"{value:g}", remedy))
        if 0 < value < LEAST_GPU_SHARE:
            law = f"a share of a GPU must be at least {LEAST_GPU_SHARE:g}"
            raise RuleError(Problem("", law, f"{value:g}", "Write a larger one."))
        return value

    @field_validator("custom")
    @classmethod
    def _custom_names(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if not 0 < amount < math.inf:
                raise RuleError(Problem("", f"the amount of {name} must be greater than 0", f"{amount:g}"))
            if name.lower() in OWN_SETTINGS:
                remedy = f"Write {OWN_SETTINGS[name.lower()]}."
                raise RuleError(Problem("", "must name resources that have no setting of their own", name, remedy))
            if not name.strip():
                raise RuleError(Problem("", "must name each resource", f"{name!r}"))
        return value

    @field_validator("labels")
    @classmethod
    def _selectors(cls, value: dict[str, str]) -> dict[str, str]:
        for key, selector in value.items():
            if not _LABEL_KEY.fullmatch(key):
                law = "a label's name must be letters, digits, dots, dashes and underscores, as in zone or my.org/zone"
                raise RuleError(Problem("", law, f"{key!r}"))
            if not _LABEL_SELECTOR.fullmatch(selector):
                law = f"label {key} must be VALUE, in(A, B), !VALUE or !in(A, B)"
                raise RuleError(Problem("", law, f"{selector!r}"))
        return value


class Limits(_Settings):
    """Limits that end a study before its ``trials`` are done, see :mod:`search.study.limits`. None: no such limit."""

    hours: Amount | None = None
    """Wall-clock time of all searches of the study together."""
    gpu_hours: Amount | None = None
    """Hours that all trials spend in epochs, times ``resources.gpu``."""
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Value of the metric that is good enough."""
    plateau_trials: Count | None = None
    """Number of trials in a row that end without a new best."""

    def describe(self, metric: str) -> str:
        """Write the limits in words."""
        comparison = "at most" if metric in MINIMIZED else "at least"
        parts = []
        if self.hours is not None:
            parts.append(f"{self.hours:g} h of wall-clock")
        if self.gpu_hours is not None:
            parts.append(f"{self.gpu_hours:g} GPU-hours")
        if self.target is not None:
            parts.append(f"{metric} of {comparison} {self.target:g}")
        if self.plateau_trials is not None:
            parts.append(f"{self.plateau_trials} trials in a row without a new best")
        return ", ".join(parts) or "none"


class StallSettings(_Settings):
    """When a trial that reports nothing is ended and started again elsewhere, see :mod:`search.cluster.stalls`."""

    epochs: Annotated[float, Field(ge=2, allow_inf_nan=False)] = 10.0
    """Multiple of the trial's usual epoch: the median of its own, else of the study's."""
    minutes: Amount = 10.0
    """The least time without a report, however short the epochs are."""


class ObjectiveSettings(_Settings):
    """A cost that is weighed against the metric, see :class:`search.cost.Objective`."""

    per: Cost
    doubling: Annotated[float, Field(gt=0, le=1)] = 0.05
    """A trial of twice the cost ranks equally if its metric is better by this share."""

    def __str__(self) -> str:
        return f"{COST_UNITS[self.per]}, twice the cost must make it {100 * self.doubling:g} % better"


class Generate(_Settings):
    """Synthetic data: numbers of training and test images, and their side in pixels."""

    train: Count = 48
    test: Annotated[int, Field(ge=0)] = 8
    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=32)] = 128


class DataSource(_Settings):
    """The data of a study where the command names none: a folder, or synthetic data."""

    root: str | None = None
    generate: Generate | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.root is None) == (self.generate is None):
            raise RuleError(Problem("", "must be either {root: FOLDER} or {generate: {...}}", "both or none"))
        return self


class StudySettings(_Settings):
    """The settings of a space file, apart from the space itself."""

    metric: Metric
    direction: Direction
    trials: Count
    epochs: Count
    seed: Annotated[int, Field(ge=0)] = 0
    keep: Count = 3
    max_slots: Count | None = None
    priority: Amount = 1.0
    stall: StallSettings = StallSettings()
    asha: AshaSettings | None = AshaSettings()
    resources: Resources | None = None
    data: DataSource | None = None
    limits: Limits | None = None
    objective: ObjectiveSettings | None = None

    @field_validator("direction", mode="before")
    @classmethod
    def _fits_the_metric(cls, value: Any, info: ValidationInfo) -> Any:
        metric = info.data.get("metric")
        if metric is not None and value != (right := direction_of(metric)):
            better = "smaller" if right == "minimize" else "larger"
            law = f"must be '{right}' for {metric} ({better} is better)"
            raise RuleError(Problem("", law, f"{value!r}"))
        return value

    @model_validator(mode="after")
    def _grace_within_epochs(self) -> Self:
        if self.asha and self.asha.grace > self.epochs:
            got = f"grace={self.asha.grace}, epochs={self.epochs}"
            remedy = "Lower grace, or write asha: off."
            raise RuleError(Problem("asha.grace", "grace <= epochs must hold", got, remedy))
        return self

    @model_validator(mode="after")
    def _gpus_to_count(self) -> Self:
        if problem := gpu_hours_problem(self.limits, self.resources):
            raise RuleError(problem)
        return self


def gpu_hours_problem(limits: Limits | None, resources: Resources | None) -> Problem | None:
    """Report a limit on GPU-hours for trials that use no GPU."""
    if limits is None or limits.gpu_hours is None or (resources is not None and resources.gpu > 0):
        return None
    got = "no resources" if resources is None else f"gpu={resources.gpu:g}"
    law = "needs resources.gpu > 0, or there is nothing to count"
    return Problem("limits.gpu_hours", law, got, "Write resources: {gpu: 1}, or limit hours.")
