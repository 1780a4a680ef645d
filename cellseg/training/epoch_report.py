"""Messages of a training run to its caller: a report per epoch, or the reason why it cannot go on."""

from dataclasses import dataclass
from typing import Literal

Ending = Literal["epochs", "patience"]
"""All epochs done, or ended early by ``train.patience`` or ``train.stop_after_decays``."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """The result of one epoch."""

    epoch: int
    """Epochs trained so far, from 1."""
    losses: dict[str, float]
    """Mean of each of the model's losses over the epoch's images, and their weighted sum as ``loss``. Batches of which
    a loss is not finite do not count for it. Only one of weight 0 may be not finite."""
    metrics: dict[str, float]
    """Validation metrics (:func:`cellseg.evaluate.evaluate`), ``loss/validation``
    (:mod:`cellseg.training.validation`), and the totals over the validation images ``count/detections`` and
    ``count/cells``. All are finite. Empty without validation (``data.train_on`` ``unvalidated``)."""
    value: float | None
    """``config.train.metric`` of this epoch, not sign-adjusted: for a loss, smaller is better. None without
    validation."""
    best_value: float | None
    """Best value so far; the checkpoint ``best`` is of ``best_epoch``. Without validation it is None, and the best
    epoch is the last."""
    best_epoch: int
    learning_rate: float
    """Rate of the epoch's last optimiser step; the backbone's is this times ``optim.backbone_lr_factor``."""
    seconds: float
    """Wall-clock time of training and validation."""
    images_per_second: float
    """Training images per second of training time, validation not counted."""
    peak_memory_bytes: int
    """Peak memory so far: allocated on the GPU, or resident on the CPU."""
    micro_batch: int
    """Most images that went through the network at a time: ``train.batch_size``, or fewer where memory is short."""
    skipped_steps: int = 0
    """Optimiser steps of this epoch that changed nothing, because a gradient was not finite. With ``train.amp`` fp16
    the first few are how it finds its scale."""
    parameters: int
    """Trainable parameters of the model."""
    ending: Ending | None
    """Why this was the last epoch, or None if there is another."""


class TrainingError(Exception):
    """A run that cannot go on because of its settings: a result for a search, not a bug."""

    def __init__(self, reason: Literal["non-finite", "out-of-memory"], detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, self.detail)
