"""An exponential moving average of a model's weights."""

import copy

import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchvision.ops import FrozenBatchNorm2d

CONSTANT = (FrozenBatchNorm2d, FrozenBatchNormAct2d)
"""Modules whose buffers never change: a ResNet-50 has 212 of them."""


def decay_of_update(decay: float, update: int) -> float:
    """Return the share of itself that an average keeps at its ``update``-th update, counted from 0: at most ``decay``.

    Early averages forget faster, (1 + n) / (10 + n) as in TensorFlow's ``ExponentialMovingAverage``. Otherwise the
    untrained weights would dominate an average of 0.999 for thousands of steps.
    """
    return min(decay, (1 + update) / (10 + update))


class WeightAverage:
    """The average of a model's trainable weights, in ``model``, a copy of that model.

    Buffers, such as the statistics of norms, are averages already, and are copied. torch's own
    ``AveragedModel`` keeps its count on the device and waits for the GPU at every update.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._buffers = moving_buffers(self.model)

    @torch.no_grad()
    def update(self, model: nn.Module, update: int) -> None:
        """Take in the weights of ``model`` after an optimiser step; ``update`` counts these from 0."""
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        averages, weights = zip(*(pair for pair in pairs if pair[1].requires_grad), strict=True)
        get_ema_multi_avg_fn(decay_of_update(self.decay, update))(averages, weights, update)
        for dtype, buffers in moving_buffers(model).items():
            torch._foreach_copy_(self._buffers[dtype], buffers)


def moving_buffers(model: nn.Module) -> dict[torch.dtype, list[Tensor]]:
    """The buffers of ``model`` that training may change, by type: one kernel copies all of a type."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for module in model.modules():
        if not isinstance(module, CONSTANT):
            for buffer in module.buffers(recurse=False):
                found.setdefault(buffer.dtype, []).append(buffer)
    return found
