"""Norm layers: exchanging the batch norms of a built network for frozen ones or for group norm."""

import math

from torch import nn
from torchvision.ops import FrozenBatchNorm2d


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at most 32 groups (Wu & He 2018) of at least 4 channels where ``channels`` allows it."""
    groups = math.gcd(channels, 32)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def frozen_batch_norm(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    """The fixed affine map that ``norm`` is in evaluation: neither its statistics nor its scale move any more."""
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    state = {name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    frozen.load_state_dict(state)
    return frozen


def convert_norms(module: nn.Module, norm: str) -> None:
    """Exchange every batch norm below ``module``, in place: ``frozen``, ``group``, or ``batch`` (nothing to do).

    Fails:
        AssertionError: a batch norm that does more than normalise (timm fuses some with their activation); plain
        exchange would drop the rest silently.
    """
    if norm == "batch":
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            assert type(child) is nn.BatchNorm2d, f"{type(child).__name__} cannot be exchanged"
            new = frozen_batch_norm(child) if norm == "frozen" else group_norm(child.num_features)
            setattr(module, name, new)
        else:
            convert_norms(child, norm)
