"""Shapes and names are looked at on torch's meta device, which has no numbers and takes no time."""

from itertools import product

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cellseg import config as cellseg_config
from cellseg.config import ModelConfig
from cellseg.config.model import CONVNEXTS, NUM_STAGES, RESNETS
from cellseg.errors import UserError
from cellseg.model.attention import CBAM, SqueezeExcitation
from cellseg.model.backbones import BACKBONES, FPNBackbone, build_body
from cellseg.model.body import is_part
from cellseg.model.deformable import ModulatedDeformConv2d
from cellseg.model.norms import InputTypeGroupNorm, OnePassFrozenBatchNorm2d, OnePassFrozenBatchNormAct2d

OTHERS = [
    "timm:mobilenetv3_small_050",  # maps within one Sequential
    "timm:mambaout_femto",  # channels last
    "timm:hieradet_small",  # timm keeps the network whole below a module of its own
    "timm:xception41",  # maps from hooks
    "timm:darknet17",  # six maps, the first at full resolution
    "timm:resnet18.a1_in1k",
]
of_every_make = pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnet10t", "efficientnet_b0", *CONVNEXTS[:1]]
)
every_resnet = pytest.mark.parametrize("name", list(RESNETS))
small_resnets = pytest.mark.parametrize("name", ["resnet10t", "resnet18", "resnext50_32x4d"])


def build(name="resnet10t", *, norm="batch", seed=0, **settings):
    torch.manual_seed(seed)
    return build_body(ModelConfig(backbone=name, **settings), pretrained=False, norm=norm)


def build_meta(name, **settings):
    with torch.device("meta"):
        return build(name, **settings)


def random_statistics(module: nn.Module) -> None:
    """Norms as after some training: nothing at its first value."""
    generator = torch.Generator().manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            for value in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.8)


def images(batch=1, height=64, width=64, seed=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_the_names_are_those_of_the_config():
    assert set(BACKBONES) == set(cellseg_config.BACKBONES)


@pytest.mark.parametrize("name", [*BACKBONES, *OTHERS])
def test_a_body_gives_four_maps_of_strides_4_to_32_and_has_every_parameter_in_one_of_five_stages(name):
    with torch.device("meta"):
        body = build(name)
        maps = body.module(torch.zeros(2, 3, 64, 160))
    assert list(maps) == ["0", "1", "2", "3"]
    assert [tuple(m.shape) for m in maps.values()] == [
        (2, channels, 64 // stride, 160 // stride)
        for channels, stride in zip(body.channels, (4, 8, 16, 32), strict=True)
    ]
    assert len(body.stages) == NUM_STAGES
    for parameter, _ in body.module.named_parameters():
        assert [is_part(parameter, stage) for stage in body.stages].count(True) == 1, parameter


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet10t", [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]),
        ("resnet50", [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]),
        (
            "efficientnet_b0",
            [
                {"conv_stem", "bn1", "blocks.0"},
                {"blocks.1"},
                {"blocks.2"},
                {"blocks.3", "blocks.4"},
                {"blocks.5", "blocks.6"},
            ],
        ),
        ("convnext_tiny", [{"stem_0", "stem_1"}, {"stages_0"}, {"stages_1"}, {"stages_2"}, {"stages_3"}]),
        (
            "timm:hieradet_small",
            [
                {"model.patch_embed", "model.pos_embed", "model.pos_embed_window"},
                {"model.blocks.0"},
                {f"model.blocks.{block}" for block in (1, 2)},
                {f"model.blocks.{block}" for block in range(3, 14)},
                {f"model.blocks.{block}" for block in (14, 15)},
            ],
        ),
    ],
)
def test_the_stages_hold_what_they_should(name, stages):
    body = build_meta(name)
    for stage, parts in zip(body.stages, stages, strict=True):
        inside = {parameter for parameter, _ in body.module.named_parameters() if is_part(parameter, stage)}
        assert inside == {parameter for parameter, _ in body.module.named_parameters() if is_part(parameter, parts)}
        assert all(any(is_part(parameter, [part]) for parameter in inside) for part in parts)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0", "convnext_tiny"])
def test_timms_networks_are_as_timm_makes_them_for_the_seed(name):
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True).eval()
    ours = build(name).module.eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    with torch.inference_mode():
        for mine, map_of_theirs in zip(ours(images()).values(), theirs(images())[-4:], strict=True):
            assert torch.equal(mine, map_of_theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_torchvisions_networks_are_as_torchvision_makes_them_for_the_seed(name):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None)
    ours = build(name).module
    assert list(ours.state_dict()) == [key for key in theirs.state_dict() if not key.startswith("fc.")]
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    theirs.avgpool = theirs.fc = nn.Identity()
    with torch.inference_mode():
        assert torch.equal(ours(images())["3"].flatten(1), theirs(images()))


@every_resnet
def test_the_architectures_are_torchvisions(name):
    if name == "resnet10t":
        pytest.skip("timm's")
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None)
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in build_meta(name).module.state_dict().items()} == shapes


def test_a_body_with_channels_last_gives_its_maps_with_channels_second():
    name = "mambaout_femto"
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True).eval()
    with torch.inference_mode():
        ours = build(f"timm:{name}").module.eval()(images())
        for mine, map_of_theirs in zip(ours.values(), theirs(images()), strict=True):
            assert torch.equal(mine.permute(0, 2, 3, 1), map_of_theirs)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("resnet26dd", r"must be a model of timm .*, but got 'resnet26dd'\. Did you mean timm:resnet26d or "),
        ("resnet18.a1_in2k", r"Did you mean timm:resnet18\.a1_in1k"),
        ("zzzzzzzzzz", r"but got 'zzzzzzzzzz'\. Use another, such as timm:"),
        ("vit_tiny_patch16_224", r"must give feature maps of strides 4, 8, 16, 32 .*, but got strides 16\."),
        ("swin_tiny_patch4_window7_224", r"images of any size, but got 'Input height \(64\) doesn't match model"),
        ("legacy_xception", r"but got maps of shape \[\(128, 15, 23\)"),
        ("sequencer2d_s", r"but got strides 7, 14"),
        ("twins_pcpvt_small", r"but got no module 'block\.0', where the first stage was said to begin"),
    ],
)
def test_only_a_timm_model_with_the_four_maps_is_taken(name, match):
    with pytest.raises(UserError, match=r"model\.backbone: .*" + match) as raised:
        build_meta(f"timm:{name}")
    assert len(raised.value.problems) == 1 and "\n" not in raised.value.problems[0]


def test_a_network_that_timm_has_no_weights_of_is_refused_before_any_download():
    assert not timm.is_model_pretrained("darknet17")
    with pytest.raises(UserError, match=r"model\.weights: timm must have ImageNet .* but got none for darknet17\."):
        build_body(ModelConfig(backbone="timm:darknet17"), pretrained=True, norm="frozen")


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in (*CONVNEXTS, "efficientnet_b1")])
@pytest.mark.parametrize(
    ("norm", "kinds"),
    [
        ("group", {InputTypeGroupNorm, GroupNormAct}),
        ("frozen", {OnePassFrozenBatchNorm2d, OnePassFrozenBatchNormAct2d}),
    ],
)
def test_no_batch_norm_is_left_when_others_are_asked_for(name, norm, kinds):
    found = {type(module) for module in build_meta(name, norm=norm).module.modules()}
    assert not found & {nn.BatchNorm2d, BatchNormAct2d}
    assert found & kinds


def test_a_norm_asked_for_where_there_is_none_to_exchange_is_an_error():
    build_meta("timm:convnextv2_atto", norm="frozen")  # what auto came to
    config = ModelConfig(backbone="timm:convnextv2_atto", norm="frozen")
    match = r"model\.norm: 'timm:convnextv2_atto' has no batch norms .* Use auto\."
    with torch.device("meta"), pytest.raises(UserError, match=match):
        build_body(config, pretrained=False, norm="frozen")


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("resnet18", "batch"),
        ("resnet18", "group"),
        ("resnet18", "frozen"),
        ("resnext50_32x4d", "batch"),
        ("resnet10t", "batch"),
        ("efficientnet_b0", "batch"),
        ("convnext_tiny", "frozen"),
    ],
)
@pytest.mark.parametrize("count", range(NUM_STAGES + 1))
def test_frozen_stages_and_no_others_get_no_gradients_and_have_no_statistics(name, norm, count):
    body = build_meta(name, norm=norm, frozen_stages=count)
    frozen = [part for stage in body.stages[:count] for part in stage]
    for parameter, value in body.module.named_parameters():
        assert value.requires_grad == (not is_part(parameter, frozen)), parameter
    left = {path for path, module in body.module.named_modules() if isinstance(module, _BatchNorm)}
    assert not {path for path in left if is_part(f"{path}.weight", frozen)}
    assert bool(left) == (norm == "batch" and count < NUM_STAGES)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("convnext_tiny", "batch"), *product(["resnet10t", "efficientnet_b0"], ["batch", "frozen", "group"])],
)
def test_frozen_stages_keep_no_activations_for_a_backward_pass(name, norm):
    first = 2
    kept = []
    for count in (0, first):
        body = build(name, norm=norm, frozen_stages=count).module.train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.shape) or t, lambda t: t):
            maps = body(images())
        kept.append(sizes)
        assert [value.requires_grad for value in maps.values()][:1] == [count < first]
    assert any(len(shape) == 4 and shape[-1] == shape[-2] > 16 for shape in kept[0])
    stem_and_first_stage = [shape for shape in kept[1] if len(shape) == 4 and shape[-1] == shape[-2] > 16]
    assert stem_and_first_stage == [], "images of 64 pixels are 16 wide behind the first stage"


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0"])
def test_a_training_step_moves_nothing_in_frozen_stages_and_everything_in_others(name):
    body = build(name, frozen_stages=2)
    random_statistics(body.module)
    before = {key: value.clone() for key, value in body.module.state_dict().items()}
    maps = body.module.train()(images(batch=2)).values()
    generator = torch.Generator().manual_seed(3)
    sum((m * torch.randn(m.shape, generator=generator)).sum() for m in maps).backward()
    with torch.no_grad():
        for parameter in body.module.parameters():
            if parameter.requires_grad:
                parameter -= 0.1 * parameter.grad
    frozen = [part for stage in body.stages[:2] for part in stage]
    for key, value in body.module.state_dict().items():
        in_frozen = is_part(key, frozen) or is_part(f"{key.rpartition('.')[0]}.weight", frozen)
        assert torch.equal(value, before[key]) == in_frozen, key


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_b0"])
def test_freezing_norms_keeps_what_the_body_computes(name):
    reference = build(name).module.eval()
    random_statistics(reference)
    frozen = build(name, norm="frozen", frozen_stages=2).module.eval()
    frozen.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")})
    with torch.no_grad():
        for ours, theirs in zip(frozen(images()).values(), reference(images()).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@small_resnets
@pytest.mark.parametrize(("attention", "tolerance"), [("se", 0.01), ("cbam", 0.05)])
def test_attention_changes_little_to_begin_with(name, attention, tolerance):
    plain = build(name, norm="group").module
    attentive = build(name, norm="group", attention=attention).module
    with torch.no_grad():
        for ours, theirs in zip(attentive(images()).values(), plain(images()).values(), strict=True):
            assert not torch.equal(ours, theirs)
            assert (ours - theirs).norm() < tolerance * theirs.norm()


@small_resnets
def test_deformable_convolutions_change_nothing_to_begin_with(name):
    plain = build(name, norm="group").module
    deformable = build(name, norm="group", deformable_stages=3).module
    with torch.no_grad():
        for ours, theirs in zip(deformable(images()).values(), plain(images()).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@small_resnets
@pytest.mark.parametrize("attention", ["se", "cbam"])
def test_all_that_is_new_in_the_blocks_gets_gradients_in_the_first_step(name, attention):
    module = build(name, norm="group", attention=attention, deformable_stages=3).module
    generator = torch.Generator().manual_seed(3)
    sum((m * torch.randn(m.shape, generator=generator)).sum() for m in module(images()).values()).backward()
    assert {key for key, value in module.named_parameters() if not value.grad.any()} == set()


@every_resnet
@pytest.mark.parametrize(("attention", "kind"), [("se", SqueezeExcitation), ("cbam", CBAM)])
@pytest.mark.parametrize(("frozen_stages", "layers"), [(0, "1234"), (1, "1234"), (3, "34"), (4, "4")])
def test_attention_is_in_every_block_of_the_stages_that_train(name, attention, kind, frozen_stages, layers):
    settings = {"attention": attention, "attention_reduction": 8, "frozen_stages": frozen_stages}
    module = build_meta(name, **settings).module
    blocks = [f"layer{layer}.{block}" for layer in layers for block, _ in module[f"layer{layer}"].named_children()]
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, kind)}
    assert set(found) == {f"{block}.se" for block in blocks}
    plain = build_meta(name, frozen_stages=frozen_stages).module.state_dict()
    new = module.state_dict().keys() - plain.keys()
    assert plain.keys() < module.state_dict().keys() and all(".se." in key for key in new)
    assert found["layer4.0.se"].mlp[0].out_channels == build_meta(name).channels[3] // 8
    assert all(value.requires_grad for key, value in module.named_parameters() if key in new)


@every_resnet
@pytest.mark.parametrize(("count", "layers"), [(0, ""), (1, "4"), (3, "234")])
def test_the_3x3_convolutions_of_the_last_stages_are_deformable(name, count, layers):
    plain = build_meta(name).module
    module = build_meta(name, deformable_stages=count).module
    found = {path: layer for path, layer in module.named_modules() if isinstance(layer, ModulatedDeformConv2d)}
    blocks = [f"layer{layer}.{block}" for layer in layers for block, _ in module[f"layer{layer}"].named_children()]
    assert set(found) == {f"{block}.conv2" for block in blocks}
    for path, layer in found.items():
        conv = plain.get_submodule(path)
        assert (layer.weight.shape, layer.stride) == (conv.weight.shape, conv.stride)
        assert conv.kernel_size == (3, 3)
    assert plain.state_dict().keys() <= module.state_dict().keys()


@small_resnets
def test_attention_stands_between_the_last_norm_and_the_addition(name):
    block = build(name, norm="group", attention="se").module.layer1[0]
    entered, normed = [], []
    block.se.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    last = block.bn3 if hasattr(block, "bn3") else block.bn2
    last.register_forward_hook(lambda _, __, output: normed.append(output))
    nn.init.constant_(block.se.mlp[-1].bias, -100)  # the gates close: the shortcut alone remains
    features = torch.rand(1, 64, 8, 8)
    with torch.no_grad():
        result = block(features.clone())
        shortcut = features if block.downsample is None else block.downsample(features)
    assert entered[0] is normed[0]
    assert torch.equal(result, shortcut.relu())


def test_the_pyramid_has_five_levels_of_equal_width():
    with torch.device("meta"):
        maps = FPNBackbone(build(), 24, None)(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(24, side, side) for side in (16, 8, 4, 2, 1)]
