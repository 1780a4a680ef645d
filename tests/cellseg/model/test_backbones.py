"""Shapes are computed on torch's meta device, which has no numbers and takes no time."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cellseg.errors import UserError
from cellseg.model.backbones import BACKBONES, FPNBackbone, build_body

every_backbone = pytest.mark.parametrize("name", list(BACKBONES))


def build(name="resnet10t", norm="batch", frozen_stages=0):
    return build_body(name, pretrained=False, norm=norm, frozen_stages=frozen_stages)


@every_backbone
def test_a_body_gives_four_maps_of_strides_4_to_32_with_its_channels(name):
    with torch.device("meta"):
        body = build(name)
        maps = body.module(torch.zeros(2, 3, 64, 96))
    assert list(maps) == ["0", "1", "2", "3"]
    assert [tuple(m.shape) for m in maps.values()] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(body.channels, (4, 8, 16, 32), strict=True)
    ]


@every_backbone
def test_the_stages_are_the_stem_and_four_more_and_hold_every_child_once(name):
    with torch.device("meta"):
        body = build(name)
    assert len(body.stages) == 5
    staged = [child for stage in body.stages for child in stage]
    assert len(staged) == len(set(staged))
    with_parameters = {child for child, module in body.module.named_children() if list(module.parameters())}
    assert with_parameters <= set(staged) <= set(dict(body.module.named_children()))


@every_backbone
def test_no_batch_norm_is_left_when_others_are_asked_for(name):
    with torch.device("meta"):
        for norm in ("group", "frozen"):
            kinds = {type(module) for module in build(name, norm).module.modules()}
            assert nn.BatchNorm2d not in kinds
            assert (nn.GroupNorm if norm == "group" else FrozenBatchNorm2d) in kinds


@every_backbone
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_frozen_stages_and_no_others_get_no_gradients(name, norm):
    with torch.device("meta"):
        for count in (1, 4):
            body = build(name, norm, count)
            for index, stage in enumerate(body.stages):
                for child in stage:
                    module = body.module.get_submodule(child)
                    assert all(p.requires_grad == (index >= count) for p in module.parameters())
                    if index < count:
                        assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def test_more_frozen_stages_than_there_are_is_an_error():
    match = r"model\.frozen_stages: resnet18 has 5 stages, but got 6"
    with torch.device("meta"), pytest.raises(UserError, match=match):
        build("resnet18", frozen_stages=6)


def test_the_pyramid_has_five_levels_of_equal_width():
    with torch.device("meta"):
        maps = FPNBackbone(build(), 24, None)(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(24, side, side) for side in (16, 8, 4, 2, 1)]


def test_freezing_and_exchanging_norms_keeps_what_the_body_computes():
    torch.manual_seed(0)
    reference = build().module.eval()
    torch.manual_seed(0)
    frozen = build(norm="frozen", frozen_stages=2).module.train()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(frozen(image).values(), reference(image).values(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
