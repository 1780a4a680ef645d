"""Optimisers, and the learning rate and decay of each parameter."""

from typing import Any

import torch
from torch import nn

from cellseg.config import OptimConfig

BODY = "backbone.body."
"""Prefix of the names of the backbone's parameters, without the FPN's."""


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser over the model's trainable parameters; a single (``fused``) kernel updates all of them."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and decay; one group if ``config`` treats all alike.

    A group has, beside torch's ``params``, ``lr`` and ``weight_decay``, an ``lr_factor``: its share of the rate that
    :func:`set_learning_rate` sets. With ``decay_on`` ``weights``, parameters of one dimension do not decay: those are
    the biases and the scales and shifts of norms, and every weight of a convolution or linear map has more.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = config.backbone_lr_factor if name.startswith(BODY) else 1.0
            spared = config.decay_on == "weights" and parameter.ndim <= 1
            groups.setdefault((factor, 0.0 if spared else config.weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": config.lr * factor, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of :func:`parameter_groups` its share of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let SGD's moments begin at 0, which its first step makes the gradient.

    torch's fused SGD takes memory for them as it comes and writes to it in the first step: if that is skipped, because
    a gradient is not finite, the second would go on from there.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
            for weight in group["params"]:
                if weight.grad is not None and "momentum_buffer" not in optimizer.state[weight]:
                    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
