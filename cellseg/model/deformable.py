"""Modulated deformable convolution (Zhu et al. 2019, arXiv:1811.11168): a convolution that learns where to look."""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class Offsets(nn.Conv2d):
    """The convolution beside ``conv`` that says for each place where its taps read and how much they count.

    It begins as 0 everywhere. Its 3K channels, K = kernel height x width, are (dy, dx) in elements of the input for
    each tap, then K logits of modulation.
    """

    def __init__(self, conv: nn.Conv2d):
        taps = math.prod(conv.kernel_size)
        kernel, stride, padding, dilation = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        super().__init__(conv.in_channels, 3 * taps, kernel, stride, padding, dilation)  # type: ignore[arg-type]
        self.taps = taps
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ModulatedDeformConv2d(nn.Module):
    """Replaces ``conv``, whose weight and bias it takes over, and computes the same to begin with.

    The modulation of a tap is twice a sigmoid, in (0, 2): 1 for the logit 0. The paper's plain sigmoid would begin with
    half of what a pretrained convolution gives.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        assert conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        self.weight = conv.weight
        self.bias = conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.offset = Offsets(conv)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W') as the convolution does, in the dtype of the input."""
        taps = self.offset.taps
        offset, modulation = self.offset(x_BCHW).split((2 * taps, taps), dim=1)
        # Autocast may have made half precision of the input, for which there is no such kernel on the CPU, and in
        # which a place could not be told from its neighbour's.
        x, offset, modulation = (tensor.to(self.weight.dtype) for tensor in (x_BCHW, offset, modulation))
        result = deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=2 * torch.sigmoid(modulation),
        )
        return result.to(x_BCHW.dtype)
