"""The settings of a space file beside the space itself."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cellseg.config import MINIMIZED, Count, Metric, Positive

Direction = Literal["maximize", "minimize"]
Cost = Literal["seconds", "parameters", "memory"]
"""What a trial can cost, see :func:`search.cost.trial_cost`."""
COST_UNITS: Mapping[Cost, str] = {"seconds": "s/epoch", "parameters": "M parameters", "memory": "GiB"}
"""What it is counted in."""
LEAST_GPU_SHARE = 0.01
"""CUDA itself takes half a gigabyte of a GPU for each process."""
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def direction_of(metric: str) -> Direction:
    """Which values of a metric are better."""
    return "minimize" if metric in MINIMIZED else "maximize"


def inner_names(parts: Mapping[str, type[BaseModel]]) -> list[str]:
    """Dotted names of the settings that stand in mappings of their own."""
    return [f"{part}.{name}" for part, model in parts.items() for name in model.model_fields]


def set_setting(
    content: dict[str, Any], key: str, value: Any, settings: Collection[str], parts: Mapping[str, type[BaseModel]]
) -> bool:
    """Set a setting of a file's ``content`` by its dotted name; False if there is none of that name.

    Args:
        settings: names at the top of the file.
        parts: those among them that are mappings, with what they hold.
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


def missing_settings(content: Mapping[str, Any], examples: Mapping[str, Any]) -> list[str]:
    """Problems: the mandatory settings that ``content`` lacks, each with its example."""
    return [
        f"{name}: must be given, but got nothing. Write for example {name}: {example}."
        for name, example in examples.items()
        if name not in content
    ]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AshaSettings(_Settings):
    """When trials are stopped, see :class:`search.study.asha.Asha`."""

    grace: Count = 1
    reduction: Annotated[int, Field(ge=2)] = 3


class Resources(_Settings):
    """What one trial occupies."""

    cpu: Positive = 1
    gpu: Annotated[float, Field(ge=0)] = 0
    """GPUs: 0, 1, or a share of one, whose memory is then limited to that share."""

    @field_validator("gpu")
    @classmethod
    def _one_gpu(cls, value: float) -> float:
        if value > 1:
            raise ValueError(
                f"a trial trains on one GPU or a share of it, so 0 <= gpu <= 1 must hold, but got {value:g}. "
                "Write gpu: 1; more GPUs run more trials side by side."
            )
        if 0 < value < LEAST_GPU_SHARE:
            raise ValueError(
                f"a share of a GPU must be at least {LEAST_GPU_SHARE:g}, but got {value:g}. Write a larger one."
            )
        return value


class Limits(_Settings):
    """What ends a study before its ``trials`` are done, see :mod:`search.study.limits`. None: no such limit."""

    hours: Amount | None = None
    """Wall-clock time of all its searches together."""
    gpu_hours: Amount | None = None
    """Sum over trials of the hours in their epochs, times ``resources.gpu``."""
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A value of the metric that is good enough."""
    plateau_trials: Count | None = None
    """So many trials ending in a row without a new best."""

    def describe(self, metric: str) -> str:
        """The limits in words."""
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


class ObjectiveSettings(_Settings):
    """A cost that ranks beside the metric, see :class:`search.cost.Objective`."""

    per: Cost
    doubling: Annotated[float, Field(gt=0, le=1)] = 0.05
    """A trial of twice the cost ranks as high if its metric is better by this share of it."""

    def __str__(self) -> str:
        return f"{COST_UNITS[self.per]}, twice the cost must make it {100 * self.doubling:g} % better"


class Generate(_Settings):
    """Cells made on the spot: so many training and test images of ``size`` x ``size`` pixels."""

    train: Count = 48
    test: Annotated[int, Field(ge=0)] = 8
    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=32)] = 128


class DataSource(_Settings):
    """The data of a study where the command is given none: a folder, or cells to generate."""

    root: str | None = None
    generate: Generate | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.root is None) == (self.generate is None):
            raise ValueError("must be either {root: FOLDER} or {generate: {...}}, but got both or none.")
        return self


class StudySettings(_Settings):
    """The settings of a space file beside the space itself."""

    metric: Metric
    direction: Direction
    trials: Count
    epochs: Count
    seed: Annotated[int, Field(ge=0)] = 0
    keep: Count = 3
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
            raise ValueError(f"must be '{right}' for {metric}, of which {better} is better, but got {value!r}.")
        return value

    @model_validator(mode="after")
    def _grace_within_epochs(self) -> Self:
        if self.asha and self.asha.grace > self.epochs:
            raise ValueError(
                f"asha.grace: grace <= epochs must hold, but got grace={self.asha.grace}, epochs={self.epochs}. "
                "Lower grace, or write asha: off."
            )
        return self

    @model_validator(mode="after")
    def _gpus_to_count(self) -> Self:
        if problem := gpu_hours_problem(self.limits, self.resources):
            raise ValueError(problem)
        return self


def gpu_hours_problem(limits: Limits | None, resources: Resources | None) -> str | None:
    """What is wrong with a limit on GPU-hours beside these resources."""
    if limits is None or limits.gpu_hours is None or (resources is not None and resources.gpu > 0):
        return None
    got = "no resources" if resources is None else f"gpu={resources.gpu:g}"
    return (
        f"limits.gpu_hours: needs resources.gpu > 0, or there is nothing to count, but got {got}. "
        "Write resources: {gpu: 1}, or limit hours."
    )
