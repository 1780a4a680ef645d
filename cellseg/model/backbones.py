"""Backbones: a body that turns an image into four feature maps, and the feature pyramid on top of it.

Bodies are built in :mod:`cellseg.model.resnets` and :mod:`cellseg.model.timm_bodies`. Here they get the
parts that all have in common: norms, frozen stages, attention and deformable convolutions.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from cellseg.config.model import CONVNEXTS, EFFICIENTNETS, NUM_STAGES, TIMM_PREFIX, ModelConfig
from cellseg.errors import UserError, first_line
from cellseg.model.attention import ATTENTION
from cellseg.model.body import Body, is_part
from cellseg.model.deformable import ModulatedDeformConv2d
from cellseg.model.norms import convert_norms
from cellseg.model.pretrained import obtain, published_weights
from cellseg.model.resnets import ARCHITECTURES, LAYERS, torchvision_body
from cellseg.model.timm_bodies import timm_body

BACKBONES: dict[str, Callable[[Path | None], Body]] = {
    "resnet10t": partial(timm_body, "resnet10t"),
    **{name: partial(torchvision_body, name) for name in ARCHITECTURES},
    **{name: partial(timm_body, name) for name in (*EFFICIENTNETS, *CONVNEXTS)},
}
"""Name -> builder; its argument is the file of ImageNet weights, if any."""


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


def build_body(config: ModelConfig, *, pretrained: bool, norm: str) -> Body:
    """Build the body of ``config``, with its norms replaced, stages frozen and blocks changed accordingly.

    Frozen stages get no gradients, and their batch norms become fixed maps, whatever ``norm`` says of the others;
    group norms have no statistics that could move.

    Args:
        pretrained: load ImageNet weights.
        norm: ``batch``, ``frozen`` or ``group``.

    Raises:
        UserError: no such backbone in timm, ImageNet weights that cannot be had, or norms that cannot be exchanged.
    """
    body = _born(config, _imagenet_file(config) if pretrained else None)
    frozen = [part for stage in body.stages[: config.frozen_stages] for part in stage]
    trained = [part for stage in body.stages[config.frozen_stages :] for part in stage]

    def norm_of(name: str) -> str:
        return "frozen" if norm == "batch" and is_part(f"{name}.weight", frozen) else norm

    if convert_norms(body.module, norm_of) == 0 and config.norm != "auto":
        raise UserError(
            f"model.norm: '{config.backbone}' has no batch norms to exchange, but got norm={config.norm}. Use auto."
        )
    for name, parameter in body.module.named_parameters():
        parameter.requires_grad_(is_part(name, trained))
    _change_blocks(body, config)
    return body


def _imagenet_file(config: ModelConfig) -> Path:
    """The file of ImageNet weights, fetched if it is nowhere on this machine."""
    file = published_weights("imagenet", config.backbone, config.detector)
    assert file is not None
    try:
        return obtain(file, config.weights_path)
    except OSError as error:  # no network, a proxy's refusal, another hash
        raise UserError(
            f"model.weights: the {file.of} must be downloadable or in the cache ($TORCH_HOME/hub/checkpoints, "
            f"$HF_HOME), but got '{first_line(error)}'. Download them on a machine with a network and copy the cache, "
            "give a file, or use weights=none."
        ) from error


def _born(config: ModelConfig, weights: Path | None) -> Body:
    timm_name = config.backbone.removeprefix(TIMM_PREFIX)
    try:
        return timm_body(timm_name, weights) if timm_name != config.backbone else BACKBONES[config.backbone](weights)
    except RuntimeError as error:
        if weights is None:
            raise
        raise UserError(
            f"model.weights: the ImageNet weights of {config.backbone} must be a whole file, but got "
            f"'{first_line(error)}' from {weights}. Delete it, and it is fetched again."
        ) from error


def _change_blocks(body: Body, config: ModelConfig) -> None:
    """Add attention to the residual blocks of all stages that train, and deformable convolutions to the last ones."""
    for stage in range(max(1, config.frozen_stages), NUM_STAGES):
        channels = body.channels[stage - 1]
        deformable = stage >= NUM_STAGES - config.deformable_stages
        if config.attention == "none" and not deformable:
            continue
        for block in body.module.get_submodule(LAYERS[stage - 1]).children():
            if config.attention != "none":
                block.se = ATTENTION[config.attention](channels, config.attention_reduction)
            if deformable:
                assert isinstance(block.conv2, nn.Conv2d)
                block.conv2 = ModulatedDeformConv2d(block.conv2)
