import pytest
import torch
from timm.layers import BatchNormAct2d, GroupNormAct, LayerNorm2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.operators import Operators
from cellseg.errors import UserError
from cellseg.model.norms import (
    InputTypeGroupNorm,
    OnePassFrozenBatchNorm2d,
    OnePassFrozenBatchNormAct2d,
    convert_norms,
    frozen_batch_norm,
    group_instead_of,
    group_norm,
    keep_half_precision,
)


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (128, 32), (64, 16), (16, 4), (8, 2), (24, 4), (40, 8), (4, 1), (6, 1), (3, 1)]
)
def test_groups_are_at_most_32_of_at_least_4_channels(channels, groups):
    norm = group_norm(channels)
    assert norm.num_groups == groups
    assert norm(torch.rand(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def trained_norm(kind=nn.BatchNorm2d, **settings) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = kind(4, eps=0.01, **settings)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    norm(torch.rand(8, 4, 3, 3) * 5)
    return norm


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_frozen_norm_computes_what_the_batch_norm_computes_in_evaluation(kind):
    norm, images = trained_norm(kind), torch.rand(2, 4, 3, 3)
    frozen = frozen_batch_norm(norm)
    assert torch.allclose(frozen.train()(images), norm.eval()(images), atol=1e-6)
    assert list(frozen.parameters()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_norm_is_torchvisions_in_the_type_of_its_input(dtype):
    frozen = frozen_batch_norm(trained_norm())
    reference = FrozenBatchNorm2d(4, eps=0.01)
    reference.load_state_dict(frozen.state_dict())
    values = torch.randn(2, 4, 5, 6).to(dtype).requires_grad_()
    found, expected = frozen(values), reference(values)
    assert found.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    assert torch.allclose(found.float(), expected, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(out.float().square().sum(), values)[0].float() for out in (found, expected)]
    assert torch.allclose(*gradients, rtol=2 * tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("exchange", [frozen_batch_norm, group_instead_of])
def test_activation_and_dropout_of_a_fused_norm_stay(exchange):
    norm = trained_norm(BatchNormAct2d, act_layer=nn.SiLU, drop_layer=nn.Dropout)
    new = exchange(norm)
    assert (new.act, new.drop) == (norm.act, norm.drop)
    assert isinstance(new.act, nn.SiLU) and isinstance(new.drop, nn.Dropout)


def test_a_fused_group_norm_normalises_before_it_activates():
    images = torch.randn(2, 4, 3, 3)
    new = group_instead_of(trained_norm(BatchNormAct2d, act_layer=nn.SiLU))
    torch.testing.assert_close(new(images), nn.functional.silu(group_norm(4)(images)))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Sequential(BatchNormAct2d(8), nn.BatchNorm2d(8), nn.LayerNorm(4))
    )


@pytest.mark.parametrize(
    ("norm", "kind", "fused_kind"),
    [
        ("batch", nn.BatchNorm2d, BatchNormAct2d),
        ("frozen", OnePassFrozenBatchNorm2d, OnePassFrozenBatchNormAct2d),
        ("group", InputTypeGroupNorm, GroupNormAct),
    ],
)
def test_every_batch_norm_at_any_depth_is_exchanged(norm, kind, fused_kind):
    module = network()
    assert convert_norms(module, lambda name: norm) == 3
    assert [type(module[1]), type(module[2][0]), type(module[2][1])] == [kind, fused_kind, kind]
    assert (type(module[0]), type(module[2][2])) == (nn.Conv2d, nn.LayerNorm)
    assert module(torch.rand(2, 3, 4, 4)).shape == (2, 8, 4, 4)


def test_each_norm_may_become_something_else():
    module = network()
    convert_norms(module, {"1": "frozen", "2.0": "batch", "2.1": "group"}.__getitem__)
    assert [type(module[1]), type(module[2][0]), type(module[2][1])] == [
        OnePassFrozenBatchNorm2d,
        BatchNormAct2d,
        InputTypeGroupNorm,
    ]


@pytest.mark.parametrize("wanted", ["frozen", "group"])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, type("NormAndMore", (nn.BatchNorm2d,), {})])
def test_a_batch_norm_that_does_something_else_is_not_dropped_silently(kind, wanted):
    module = nn.Sequential(kind(4))
    with pytest.raises(UserError, match=rf"model\.norm: .* become {wanted}, but got {kind.__name__} in the backbone"):
        convert_norms(module, lambda name: wanted)
    assert convert_norms(module, lambda name: "batch") == 1


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNormAct2d])
def test_what_a_frozen_norm_does_is_worked_out_once_and_again_when_it_changes(kind):
    frozen, images = frozen_batch_norm(trained_norm(kind)), torch.rand(2, 4, 3, 3, requires_grad=True)
    with torch.inference_mode():
        first = frozen(images)
    with Operators() as counted:
        again = frozen(images)
    assert "rsqrt" not in counted.launched
    assert torch.equal(first, again)
    again.sum().backward()  # what was computed in prediction serves training
    frozen.load_state_dict({name: value + 1 for name, value in frozen.state_dict().items()})
    changed = frozen(images)
    frozen.eps = 1.0  # type: ignore[assignment]  # torch.nn.Module may have anything
    assert not torch.equal(changed, again) and not torch.equal(frozen(images), changed)
    assert frozen(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "make", [lambda: group_norm(8), lambda: group_instead_of(BatchNormAct2d(8)), lambda: LayerNorm2d(8)]
)
def test_norms_keep_half_precision_under_autocast_and_sum_in_float32(make, dtype):
    norm = make()
    keep_half_precision(norm)
    images = (100 + torch.randn(2, 8, 40, 40)).to(dtype)  # a mean that bfloat16 could not sum
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = norm(images)
    assert found.dtype == dtype
    norm.float()
    assert torch.allclose(found.float(), norm(images.float()), atol=1e-5 if dtype is torch.float32 else 0.03)


def test_another_eps_than_such_norms_have_travels_with_the_weights():
    plain, trained_without = frozen_batch_norm(trained_norm()), frozen_batch_norm(trained_norm())
    trained_without.eps = 0.0  # type: ignore[assignment]
    assert set(trained_without.state_dict()) - set(plain.state_dict()) == {"eps"}
    state = trained_without.state_dict()
    plain.load_state_dict(state)
    assert plain.eps == 0.0
    assert "eps" in state, "the caller's state stays as it is"
    images = torch.rand(2, 4, 3, 3)
    assert torch.equal(plain(images), trained_without(images))
