"""Norm layers: the batch norms of a built network replaced by frozen ones or by group norms."""

import math
from collections.abc import Callable

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from cellseg.errors import UserError


def num_groups(channels: int) -> int:
    """Choose at most 32 groups (Wu & He 2018) of at least 4 channels where ``channels`` allows it."""
    groups = math.gcd(channels, 32)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return groups


def group_norm(channels: int) -> nn.GroupNorm:
    """Build a group norm with :func:`num_groups` groups."""
    return nn.GroupNorm(num_groups(channels), channels)


class OnePassFrozenBatchNorm2d(FrozenBatchNorm2d):
    """torchvision's, in one pass over the activations instead of two, and in their own type.

    In mixed precision torchvision's multiplies bfloat16 by float32, and all activations become float32: twice the
    memory, and a copy for every convolution, which wants bfloat16 again.
    """

    def forward(self, x: Tensor) -> Tensor:
        scale_C = self.weight * (self.running_var + self.eps).rsqrt()
        shift_C = self.bias - self.running_mean * scale_C
        scale_C11, shift_C11 = (values_C.to(x.dtype)[:, None, None] for values_C in (scale_C, shift_C))
        return torch.addcmul(shift_C11, x, scale_C11)


def frozen_batch_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """Replace ``norm`` by the fixed affine map that it is in evaluation, with constant statistics and scale.

    What timm's ``BatchNormAct2d`` does after normalising, dropout and activation, it keeps.
    """
    if isinstance(norm, BatchNormAct2d):
        frozen = _with_activation(FrozenBatchNormAct2d(norm.num_features, eps=norm.eps), norm)
    else:
        frozen = OnePassFrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    state = {name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    frozen.load_state_dict(state)
    return frozen


def group_instead_of(norm: nn.BatchNorm2d) -> nn.Module:
    """Replace ``norm`` by a new group norm; dropout and activation of timm's ``BatchNormAct2d`` stay."""
    if isinstance(norm, BatchNormAct2d):
        return _with_activation(GroupNormAct(norm.num_features, num_groups(norm.num_features)), norm)
    return group_norm(norm.num_features)


def convert_norms(module: nn.Module, norm_of: Callable[[str], str]) -> int:
    """Replace the batch norms below ``module`` in place.

    Args:
        norm_of: what the batch norm of this dotted name becomes: ``frozen``, ``group``, or ``batch`` (it stays).

    Returns:
        How many batch norms there were.

    Raises:
        UserError: one to exchange is of a kind that does something unknown beside, which exchange would drop silently.
    """
    found = [(name, norm) for name, norm in module.named_modules() if isinstance(norm, _BatchNorm)]
    exchange = {"frozen": frozen_batch_norm, "group": group_instead_of}
    for name, norm in found:
        wanted = norm_of(name)
        if wanted == "batch":
            continue
        if not isinstance(norm, nn.BatchNorm2d) or type(norm) not in (nn.BatchNorm2d, BatchNormAct2d):
            raise UserError(
                f"model.norm: norms of type BatchNorm2d can become {wanted}, but got {type(norm).__name__} in the "
                "backbone. Use norm=batch and frozen_stages=0, or another backbone."
            )
        module.set_submodule(name, exchange[wanted](norm))
    return len(found)


def _with_activation(new: nn.Module, norm: BatchNormAct2d) -> nn.Module:
    new.drop, new.act = norm.drop, norm.act
    return new
