"""torchvision's ResNets and ResNeXts, whose residual blocks have room for attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from cellseg.checkpoint import load_tensors
from cellseg.errors import UserError
from cellseg.model.body import Body

LAYERS = ("layer1", "layer2", "layer3", "layer4")
"""The children of a ResNet, torchvision's or timm's, that hold the residual blocks of its four stages."""


class _RoomForAttention:
    """The common part of torchvision's two kinds of residual blocks.

    ``se`` is timm's name for the same place: after the last norm, before the addition. Without parameters there, the
    names in the state dict are torchvision's.
    """

    downsample: nn.Module | None
    relu: nn.Module
    residual: Callable[[Tensor], Tensor]
    """The branch that is added to the shortcut, before attention."""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        self.se: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.se(self.residual(x))
        x += shortcut
        return self.relu(x)


class AttentiveBasicBlock(_RoomForAttention, BasicBlock):
    """torchvision's two-convolution block with room for attention."""

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))


class AttentiveBottleneck(_RoomForAttention, Bottleneck):
    """torchvision's three-convolution block with room for attention."""

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


@dataclass(frozen=True)
class Architecture:
    """Arguments that torchvision's constructor of the same name passes to ``ResNet``."""

    block: type[AttentiveBasicBlock] | type[AttentiveBottleneck]
    blocks: Sequence[int]
    """Residual blocks of each stage."""
    groups: int = 1
    """Of the 3x3 convolutions."""
    width_per_group: int = 64


ARCHITECTURES = {
    "resnet18": Architecture(AttentiveBasicBlock, (2, 2, 2, 2)),
    "resnet34": Architecture(AttentiveBasicBlock, (3, 4, 6, 3)),
    "resnet50": Architecture(AttentiveBottleneck, (3, 4, 6, 3)),
    "resnet101": Architecture(AttentiveBottleneck, (3, 4, 23, 3)),
    "resnext50_32x4d": Architecture(AttentiveBottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Architecture(AttentiveBottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
}


def torchvision_body(name: str, weights: Path | None) -> Body:
    """Build the ResNet called ``name``, with the weights of a file in torchvision's form, if one is given.

    Raises:
        RuntimeError: weights that are damaged or of another network.
    """
    architecture = ARCHITECTURES[name]
    network = ResNet(
        architecture.block,
        architecture.blocks,
        groups=architecture.groups,
        width_per_group=architecture.width_per_group,
    )
    if weights is not None:
        try:
            state = load_tensors(weights)
        except UserError as error:
            raise RuntimeError(str(error)) from error
        network.load_state_dict(state)
    module = IntermediateLayerGetter(network, {layer: str(index) for index, layer in enumerate(LAYERS)})
    first, second, third, fourth = (64 * 2**stage * architecture.block.expansion for stage in range(4))
    return Body(module, (first, second, third, fourth), (("conv1", "bn1"), *((layer,) for layer in LAYERS)))
