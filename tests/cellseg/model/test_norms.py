import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from cellseg.model.norms import convert_norms, frozen_batch_norm, group_norm


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (128, 32), (64, 16), (16, 4), (8, 2), (24, 4), (40, 8), (4, 1), (6, 1), (3, 1)]
)
def test_groups_are_at_most_32_of_at_least_4_channels(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups
    assert norm(torch.rand(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def trained_norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=0.01)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    norm(torch.rand(8, 4, 3, 3) * 5)
    return norm


def test_a_frozen_norm_computes_what_the_batch_norm_computes_in_evaluation():
    norm, images = trained_norm(), torch.rand(2, 4, 3, 3)
    frozen = frozen_batch_norm(norm)
    assert torch.allclose(frozen.train()(images), norm.eval()(images), atol=1e-6)
    assert list(frozen.parameters()) == []


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)))


@pytest.mark.parametrize(
    ("norm", "kind"), [("batch", nn.BatchNorm2d), ("frozen", FrozenBatchNorm2d), ("group", nn.GroupNorm)]
)
def test_every_norm_at_any_depth_is_exchanged(norm, kind):
    module = network()
    convert_norms(module, norm)
    assert type(module[1]) is type(module[2][1]) is kind
    assert type(module[0]) is nn.Conv2d
    assert module(torch.rand(2, 3, 4, 4)).shape == (2, 8, 4, 4)


def test_a_batch_norm_that_does_more_is_not_dropped_silently():
    class NormAndActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(AssertionError, match="NormAndActivation cannot be exchanged"):
        convert_norms(nn.Sequential(NormAndActivation(4)), "frozen")
