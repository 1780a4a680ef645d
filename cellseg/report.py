"""What a training run tells its caller: a report an epoch, or why it cannot go on."""

from dataclasses import dataclass
from typing import Literal

Ending = Literal["epochs", "patience"]


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """What one epoch did."""

    epoch: int
    """Epochs trained so far, from 1."""
    losses: dict[str, float]
    """Mean of each Mask R-CNN loss over the epoch's steps, and their sum as ``loss``."""
    metrics: dict[str, float]
    """Validation metrics (:func:`cellseg.evaluate.evaluate`)."""
    value: float
    """``config.train.metric`` of this epoch."""
    best_value: float
    """Best value so far; the checkpoint ``best`` is of ``best_epoch``."""
    best_epoch: int
    learning_rate: float
    """Rate of the epoch's last step."""
    seconds: float
    """Wall-clock time of training and validation."""
    images_per_second: float
    """Training images per second of training time, validation not counted."""
    peak_memory_bytes: int
    """Most memory so far: allocated on the GPU, or resident on the CPU."""
    parameters: int
    """Trainable parameters of the model."""
    ending: Ending | None
    """Why this was the last epoch, or None if there is another."""


class TrainingError(Exception):
    """The run cannot go on, for a reason that lies in its settings: data for a search, not a bug."""

    def __init__(self, reason: Literal["non-finite", "out-of-memory"], detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)
