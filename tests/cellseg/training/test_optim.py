from collections import OrderedDict

import pytest
import torch
from torch import nn

from cellseg.config import OptimConfig
from cellseg.training.optim import build_optimizer, parameter_groups, set_learning_rate


def network() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    return module


def detector() -> nn.Module:
    """Parts with the names of a detector's; in the body, ``conv1`` is frozen."""
    body = nn.Sequential(
        OrderedDict(conv1=nn.Conv2d(3, 4, 1), bn1=nn.BatchNorm2d(4), layer1=nn.Conv2d(4, 4, 3), gn=nn.GroupNorm(2, 4))
    )
    body.conv1.requires_grad_(False)
    backbone = nn.ModuleDict({"body": body, "fpn": nn.Conv2d(4, 4, 1)})
    return nn.ModuleDict({"backbone": backbone, "head": nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))})


def names_by_group(config: OptimConfig) -> dict[tuple, set[str]]:
    """The parameters' names by (lr factor, decay)."""
    model = detector()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        (group["lr_factor"], group["weight_decay"]): {names[id(parameter)] for parameter in group["params"]}
        for group in parameter_groups(model, config)
    }


BODY_WEIGHTS, BODY_OTHERS = (
    {"backbone.body.layer1.weight"},
    {"backbone.body.bn1.weight", "backbone.body.bn1.bias", "backbone.body.layer1.bias", "backbone.body.gn.weight"}
    | {"backbone.body.gn.bias"},
)
WEIGHTS, OTHERS = (
    {"backbone.fpn.weight", "head.0.weight"},
    {"backbone.fpn.bias", "head.0.bias", "head.1.weight", "head.1.bias"},
)


def test_sgd_has_momentum_and_decay():
    config = OptimConfig(optimizer="sgd", lr=0.2, momentum=0.7, weight_decay=0.01)
    optimizer = build_optimizer(network(), config)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.2, 0.7, 0.01)


def test_adamw_has_decay():
    optimizer = build_optimizer(network(), OptimConfig(optimizer="adamw", lr=0.2, weight_decay=0.01))
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.2, 0.01)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_trainable_parameters_are_optimised(name):
    module = network()
    optimizer = build_optimizer(module, OptimConfig(optimizer=name))
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module[1].parameters()}


def test_by_default_all_parameters_are_one_group_in_the_models_order():
    model = detector()
    (group,) = parameter_groups(model, OptimConfig(weight_decay=0.01))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in trainable]
    assert (group["lr_factor"], group["weight_decay"]) == (1.0, 0.01)


def test_biases_and_norms_are_spared_from_decay():
    groups = names_by_group(OptimConfig(weight_decay=0.01, decay_on="weights"))
    assert groups == {(1.0, 0.01): BODY_WEIGHTS | WEIGHTS, (1.0, 0.0): BODY_OTHERS | OTHERS}


def test_the_backbone_below_the_fpn_learns_at_its_share_of_the_rate():
    groups = names_by_group(OptimConfig(weight_decay=0.01, backbone_lr_factor=0.1))
    assert groups == {(0.1, 0.01): BODY_WEIGHTS | BODY_OTHERS, (1.0, 0.01): WEIGHTS | OTHERS}


def test_decay_and_rate_are_set_apart_from_each_other():
    groups = names_by_group(OptimConfig(weight_decay=0.01, decay_on="weights", backbone_lr_factor=0.1))
    assert groups == {
        (0.1, 0.01): BODY_WEIGHTS,
        (0.1, 0.0): BODY_OTHERS,
        (1.0, 0.01): WEIGHTS,
        (1.0, 0.0): OTHERS,
    }


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_every_group_gets_its_share_of_the_rate(name):
    optimizer = build_optimizer(detector(), OptimConfig(optimizer=name, lr=1.0, backbone_lr_factor=0.5))
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.25]


def test_a_saved_state_keeps_the_shares():
    config = OptimConfig(backbone_lr_factor=0.5)
    restored = build_optimizer(detector(), config)
    restored.load_state_dict(build_optimizer(detector(), config).state_dict())
    assert [group["lr_factor"] for group in restored.param_groups] == [0.5, 1.0]
