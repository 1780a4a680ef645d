"""Backbones: networks that turn an image into four feature maps, finest first, with strides 4, 8, 16 and 32.

Every body returns an ordered dict ``"0".."3"`` of (B, C, H / stride, W / stride) float tensors, the keys that
torchvision's detectors use, and splits into stages (stem first) so that leading ones can be frozen.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from cellseg.config import Backbone
from cellseg.errors import UserError
from cellseg.model.norms import convert_norms


@dataclass(frozen=True)
class Body:
    """A built backbone body, still with the batch norms it was born with."""

    module: nn.Module
    channels: tuple[int, int, int, int]
    """Channels of the four feature maps, finest first."""
    stages: tuple[tuple[str, ...], ...]
    """Names of the module's children, stem first: what ``model.frozen_stages`` counts."""


def _torchvision_resnet(name: str, channels: tuple[int, int, int, int], pretrained: bool) -> Body:
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"] if pretrained else None
    layers = ("layer1", "layer2", "layer3", "layer4")
    network = torchvision.models.get_model(name, weights=weights, progress=False)
    module = IntermediateLayerGetter(network, {layer: str(index) for index, layer in enumerate(layers)})
    return Body(module, channels, (("conv1", "bn1"), *((layer,) for layer in layers)))


class _TimmBody(nn.ModuleDict):
    """A timm ``features_only`` network that returns its maps under torchvision's keys."""

    def __init__(self, network: nn.Module, last_of_stage: list[str]):
        super().__init__(OrderedDict(network.named_children()))
        self.last_of_stage = last_of_stage

    def forward(self, images_BCHW: Tensor) -> "OrderedDict[str, Tensor]":
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.items():
            images_BCHW = layer(images_BCHW)
            if name in self.last_of_stage:
                maps[str(len(maps))] = images_BCHW
        return maps


def _timm(name: str, pretrained: bool) -> Body:
    network = timm.create_model(name, features_only=True, pretrained=pretrained)
    levels = [info for info in network.feature_info.get_dicts() if info["reduction"] in (4, 8, 16, 32)]
    last_of_stage = [info["module"] for info in levels]
    stages: list[list[str]] = [[]]
    names = list(dict(network.named_children()))
    for child in names:
        # The stem is everything before the first map's own layers; a stage ends with the layer that yields its map.
        if child == last_of_stage[0] or (stages[-1] and stages[-1][-1] in last_of_stage):
            stages.append([])
        stages[-1].append(child)
    channels = tuple(info["num_chs"] for info in levels)
    return Body(_TimmBody(network, last_of_stage), channels, tuple(tuple(stage) for stage in stages))


BACKBONES: dict[Backbone, Callable[[bool], Body]] = {
    "resnet10t": partial(_timm, "resnet10t"),
    "resnet18": partial(_torchvision_resnet, "resnet18", (64, 128, 256, 512)),
    "resnet34": partial(_torchvision_resnet, "resnet34", (64, 128, 256, 512)),
    "resnet50": partial(_torchvision_resnet, "resnet50", (256, 512, 1024, 2048)),
    "resnet101": partial(_torchvision_resnet, "resnet101", (256, 512, 1024, 2048)),
}
"""Name -> builder; its argument says whether to load ImageNet weights."""


class FPNBackbone(nn.Module):
    """A body with a feature pyramid on top: five levels of equal width, strides 4, 8, 16, 32 and 64.

    Attribute names are those of torchvision's ``BackboneWithFPN``, so that its detectors' weights load.
    """

    def __init__(self, body: Body, out_channels: int, norm_layer: Callable[[int], nn.Module] | None):
        super().__init__()
        self.body = body.module
        self.fpn = FeaturePyramidNetwork(
            list(body.channels), out_channels, extra_blocks=LastLevelMaxPool(), norm_layer=norm_layer
        )
        self.out_channels = out_channels

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return self.fpn(self.body(images_BCHW))


def build_body(name: Backbone, *, pretrained: bool, norm: str, frozen_stages: int) -> Body:
    """The body called ``name`` with its norms exchanged and its first stages frozen.

    Args:
        norm: ``batch``, ``frozen`` or ``group``.
        frozen_stages: this many leading stages get no gradients; their batch norms become fixed maps, too.

    Raises:
        UserError: more stages than there are, or ImageNet weights that cannot be had.
    """
    try:
        body = BACKBONES[name](pretrained)
    except (OSError, RuntimeError) as error:  # no network, a proxy's refusal, a damaged file (hash mismatch)
        if not pretrained:
            raise
        raise UserError(
            f"model.weights: the ImageNet weights of {name} must be downloadable or in the cache "
            f"($TORCH_HOME/hub/checkpoints, $HF_HOME), but got '{str(error).splitlines()[0]}'. "
            "Download them where there is a network and copy the cache, give a file, or use weights=none."
        ) from error
    if frozen_stages > len(body.stages):
        raise UserError(
            f"model.frozen_stages: {name} has {len(body.stages)} stages, but got {frozen_stages}. Take fewer."
        )
    frozen = [child for stage in body.stages[:frozen_stages] for child in stage]
    # Group norm has no statistics that could move, so it needs no exchange to stand still.
    standing_still = nn.ModuleDict({child: body.module.get_submodule(child) for child in frozen})
    convert_norms(standing_still, "group" if norm == "group" else "frozen")
    standing_still.requires_grad_(False)
    for child, module in standing_still.items():
        setattr(body.module, child, module)
    convert_norms(body.module, norm)
    return body
