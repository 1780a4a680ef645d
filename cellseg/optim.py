"""Optimisers and learning-rate schedules.

A schedule is a pure function of the step, so a resumed run needs no schedule state: the rate follows from where it is.
"""

import math

import torch
from torch import nn

from cellseg.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the model's trainable parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The rate of step ``step``, counted from 0, of a run of ``epochs`` whole epochs.

    warmup-cosine rises linearly from ``lr / warmup_steps`` to ``lr`` and then falls along half a cosine to almost 0
    (Loshchilov & Hutter 2017, without restarts); step multiplies by ``gamma`` after every ``step_epochs``.
    """
    if config.schedule == "step":
        return config.lr * config.gamma ** (step // steps_per_epoch // config.step_epochs)
    if config.schedule == "warmup-cosine":
        total = steps_per_epoch * epochs
        warmup = round(config.warmup_fraction * total)
        if step < warmup:
            return config.lr * (step + 1) / warmup
        return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group of ``optimizer`` the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
