"""The settings of a space file beside the space itself."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cellseg.config import MINIMIZED, Count, Metric, Positive

Direction = Literal["maximize", "minimize"]


def direction_of(metric: str) -> Direction:
    """Which values of a metric are better."""
    return "minimize" if metric in MINIMIZED else "maximize"


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AshaSettings(_Settings):
    """When trials are stopped, see :class:`search.asha.Asha`."""

    grace: Count = 1
    reduction: Annotated[int, Field(ge=2)] = 3


class Resources(_Settings):
    """What one trial occupies."""

    cpu: Positive = 1
    gpu: Annotated[float, Field(ge=0)] = 0


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
