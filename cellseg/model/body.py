"""The interface of every backbone: a network of a stem and four stages."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Body:
    """A built backbone body, still with the norms it was born with.

    The module maps (B, 3, H, W) float images, H and W multiples of 32, to an ordered dict ``"0".."3"``, the keys that
    torchvision's detectors use, of (B, C, H / stride, W / stride) maps with strides 4, 8, 16 and 32.
    """

    module: nn.Module
    channels: tuple[int, int, int, int]
    """Channels of the four feature maps, finest first."""
    stages: tuple[tuple[str, ...], ...]
    """The stem and four stages, each as names of the submodules and parameters of ``module`` that belong to it: what
    ``model.frozen_stages`` counts. A parameter in none of them is one that no feature map depends on."""


def is_part(name: str, parts: Iterable[str]) -> bool:
    """Return whether the dotted ``name`` of a parameter or module is among ``parts`` or lies within one of them."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)
