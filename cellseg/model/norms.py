"""Norm layers: the batch norms of a built network replaced by frozen ones or by group norms.

In mixed precision activations keep their half precision in all of them; torch and timm would make them float32 in most,
for which a GPU copies them, and again for the next convolution. Statistics are summed in float32 either way.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from cellseg.errors import UserError


def num_groups(channels: int) -> int:
    """Choose at most 32 groups (Wu & He 2018) of at least 4 channels where ``channels`` allows it."""
    groups = math.gcd(channels, 32)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return groups


EPS = "eps"
"""The entry of a frozen norm in a state dict that says its ``eps``, where that is not what such norms have."""


class InputTypeGroupNorm(nn.GroupNorm):
    """torch's group norm in the type of its input, under autocast too."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == self.weight.dtype:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            weight_C, bias_C = self.weight.to(input.dtype), self.bias.to(input.dtype)
            return F.group_norm(input, self.num_groups, weight_C, bias_C, self.eps)


def group_norm(channels: int) -> nn.GroupNorm:
    """Build a group norm with :func:`num_groups` groups."""
    return InputTypeGroupNorm(num_groups(channels), channels)


def keep_half_precision(module: nn.Module) -> None:
    """Have timm's own layer and group norms below ``module`` compute in the type of autocast (its ``fast_norm``)."""
    for norm in module.modules():
        if hasattr(norm, "_fast_norm"):
            norm._fast_norm = True  # type: ignore[assignment]


class OnePass(nn.Module):
    """A frozen batch norm, torchvision's or timm's, in one pass over the activations instead of two and in their type.

    Its scale and shift are computed once for each type, and again where a buffer has changed.

    Weights that were trained with another ``eps`` than the norm was made with say so in the state dict, as ``eps``: it
    is part of the map they were trained with, wherever they go.
    """

    eps: float
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__(num_features, eps=eps)
        self.eps_as_made = eps
        self._maps: dict[torch.dtype, tuple[tuple, Tensor, Tensor]] = {}

    def normalize(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in any type -> the same."""
        scale_C11, shift_C11 = self._map(x.dtype)
        return torch.addcmul(shift_C11, x, scale_C11)

    def _map(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return self._new_map(dtype)
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        key = (self.eps, *((buffer.data_ptr(), buffer._version) for buffer in buffers))
        known = self._maps.get(dtype)
        if known is None or known[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # what prediction computes serves training too
                known = self._maps[dtype] = (key, *self._new_map(dtype))
        return known[1:]

    def _new_map(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale_C = self.weight * (self.running_var + self.eps).rsqrt()
        shift_C = self.bias - self.running_mean * scale_C
        return scale_C.to(dtype)[:, None, None], shift_C.to(dtype)[:, None, None]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.eps != self.eps_as_made:
            destination[f"{prefix}{EPS}"] = torch.tensor(self.eps, dtype=torch.float64)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        eps = state_dict.pop(f"{prefix}{EPS}", None)
        if eps is not None:
            self.eps = float(eps)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class OnePassFrozenBatchNorm2d(OnePass, FrozenBatchNorm2d):
    """torchvision's."""

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x)


class OnePassFrozenBatchNormAct2d(OnePass, FrozenBatchNormAct2d):
    """timm's, with dropout and activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.normalize(x)))  # type: ignore[operator]


def frozen_batch_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """Replace ``norm`` by the fixed affine map that it is in evaluation, with constant statistics and scale.

    What timm's ``BatchNormAct2d`` does after normalising, dropout and activation, it keeps.
    """
    if isinstance(norm, BatchNormAct2d):
        frozen = _with_activation(OnePassFrozenBatchNormAct2d(norm.num_features, eps=norm.eps), norm)
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
