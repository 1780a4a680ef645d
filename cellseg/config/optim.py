"""Optimiser and learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from cellseg.config.base import Count, NotNegative, Part, Positive


class OptimConfig(Part):
    """Optimiser and learning-rate schedule."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """``sgd`` with momentum, or ``adamw`` with torch's betas."""
    lr: Positive = 1e-4
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum."""
    weight_decay: NotNegative = 1e-4
    """Weight decay: added to the gradients by SGD, decoupled from them by AdamW."""
    decay_on: Literal["all", "weights"] = "all"
    """``weights`` applies ``weight_decay`` to weights only, not to biases and the scales and shifts of norms."""
    backbone_lr_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The backbone below the FPN, with its attention and offsets, learns at ``lr`` times this; FPN and heads at
    ``lr``."""
    accumulate_batches: Count = 1
    """Number of batches whose gradients are averaged for one optimiser step; the effective batch grows by this
    factor."""
    clip_norm: Positive | None = 10.0
    """Gradients are scaled down to this total 2-norm. None: never."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Validation and checkpoints use an exponential moving average of the weights with this decay per step; early steps
    use less: (1 + n) / (10 + n) at step n. None: the weights themselves."""
    schedule: Literal["constant", "step", "cosine", "warm-restarts", "warmup-cosine", "plateau"] = "warmup-cosine"
    """Learning-rate schedule over all ``train.epochs``, also for a trial that is stopped early."""
    step_epochs: Count = 3
    """step: epochs between two decays."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """step: factor of each decay."""
    restart_epochs: Count = 10
    """warm-restarts: epochs of the first cosine, after which the rate is ``lr`` again (Loshchilov & Hutter 2017)."""
    restart_multiplier: Count = 1
    """warm-restarts: factor by which each cosine is longer than the one before."""
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """warmup-cosine: share of all steps in which the rate rises linearly from 0 to ``lr``."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """plateau: epochs at ``lr`` times ``warmup_factor`` before the first at ``lr``."""
    warmup_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """plateau: see ``warmup_epochs``."""
    plateau_watch: Literal["metric", "training-loss", "validation-loss"] = "metric"
    """plateau: the value that must improve; ``metric`` is ``train.metric``."""
    plateau_patience: Count = 5
    """plateau: the rate is lowered after this many epochs in a row without a new best, warm-up not counted."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """plateau: factor by which the rate is lowered."""
