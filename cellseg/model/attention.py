"""Attention within a residual block: gates that scale its channels, or its channels and places.

Both modules keep shape and dtype of a (B, C, H, W) map of any size. A gate is twice a sigmoid, in (0, 2), of a layer
that starts at or near 0. So a gate starts near 1, and pretrained blocks get nearly the features they expect; the
papers' plain sigmoid would halve them in every block. There are no norms inside: batches are small.
"""

import torch
from torch import Tensor, nn

MIN_HIDDEN = 4
"""Fewest channels of a hidden layer: fewer ReLUs may all be 0 and stay so."""
GATE_STD = 0.001
"""Standard deviation of the first weights of the channels' gates. At 0 the layer before would get no gradients."""


class SqueezeExcitation(nn.Module):
    """A gate for each channel, from the channels' means over all places (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.mlp = _channel_mlp(channels, reduction)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * _gate(self.mlp(x_BCHW.mean((2, 3), keepdim=True)))


class CBAM(nn.Module):
    """Convolutional block attention: a gate for each channel, then one for each place (Woo et al. 2018,
    arXiv:1807.06521).

    The channels' gates come from their means and maxima over all places, through one shared perceptron. The places'
    gates come from the mean and the maximum over channels, through a 7x7 convolution.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.mlp = _channel_mlp(channels, reduction)
        self.places = _begin_near_zero(nn.Conv2d(2, 1, kernel_size=7, padding=3), std=0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean_BC11 = x_BCHW.mean((2, 3), keepdim=True)
        maximum_BC11 = x_BCHW.amax((2, 3), keepdim=True)
        x_BCHW = x_BCHW * _gate(self.mlp(mean_BC11) + self.mlp(maximum_BC11))
        summary_B2HW = torch.cat([x_BCHW.mean(1, keepdim=True), x_BCHW.amax(1, keepdim=True)], dim=1)
        return x_BCHW * _gate(self.places(summary_B2HW))


ATTENTION = {"se": SqueezeExcitation, "cbam": CBAM}
"""``model.attention`` -> module, made from its number of channels and ``model.attention_reduction``."""


def _channel_mlp(channels: int, reduction: int) -> nn.Sequential:
    """Build a perceptron over (B, C, 1, 1) with one hidden layer."""
    hidden = max(MIN_HIDDEN, channels // reduction)
    last = _begin_near_zero(nn.Conv2d(hidden, channels, kernel_size=1), std=GATE_STD)
    return nn.Sequential(nn.Conv2d(channels, hidden, kernel_size=1), nn.ReLU(), last)


def _begin_near_zero(layer: nn.Conv2d, std: float) -> nn.Conv2d:
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def _gate(logits: Tensor) -> Tensor:
    return 2 * torch.sigmoid(logits)
