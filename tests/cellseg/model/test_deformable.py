import pytest
import torch
from torch import nn

from cellseg.model.deformable import ModulatedDeformConv2d

GEOMETRIES = [
    {},
    {"stride": 2},
    {"groups": 4},
    {"groups": 4, "stride": 2, "bias": True},
    {"dilation": 2, "padding": 2},
    {"padding": 0},
]


def conv_and_twin(**geometry) -> tuple[nn.Conv2d, ModulatedDeformConv2d]:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, **{"padding": 1, "bias": False} | geometry)
    return conv, ModulatedDeformConv2d(conv)


@pytest.fixture
def features():
    return torch.randn(2, 8, 9, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_begins_as_the_convolution_it_replaces(geometry, features):
    conv, deformable = conv_and_twin(**geometry)
    torch.testing.assert_close(deformable(features), conv(features))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_parameter_gets_gradients_in_the_first_step(geometry, features):
    _, deformable = conv_and_twin(**geometry)
    result = deformable(features)
    (result * torch.randn(result.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    per_output = deformable.offset.bias.grad
    assert per_output.all(), "dy, dx and modulation of every tap"
    assert {name for name, p in deformable.named_parameters() if not p.grad.any()} == set()


def test_the_names_are_those_of_the_convolution_and_the_offsets():
    assert set(conv_and_twin()[1].state_dict()) == {"weight", "offset.weight", "offset.bias"}
    assert "bias" in conv_and_twin(bias=True)[1].state_dict()


def test_offsets_move_what_a_tap_reads(features):
    conv, deformable = conv_and_twin(padding=0)
    with torch.no_grad():
        deformable.offset.bias[:18:2] = 1  # dy of all taps
    torch.testing.assert_close(deformable(features)[:, :, :-1], conv(features)[:, :, 1:])


@pytest.mark.parametrize(("logit", "factor"), [(-100.0, 0.0), (100.0, 2.0)])
def test_modulation_scales_each_tap_between_0_and_2(logit, factor, features):
    conv, deformable = conv_and_twin()
    with torch.no_grad():
        deformable.offset.bias[18] = logit  # the upper left tap
        result = deformable(features)
        conv.weight[:, :, 0, 0] *= factor
        torch.testing.assert_close(result, conv(features))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_it_works_under_autocast_with_inputs_of_either_precision(half, features):
    conv, deformable = conv_and_twin()
    with torch.autocast("cpu", dtype=half):
        for dtype in (torch.float32, half):
            result = deformable(features.to(dtype))
            assert result.dtype == dtype
            torch.testing.assert_close(result.float(), conv(features).float(), rtol=0.02, atol=0.02)
            result.float().square().sum().backward()
    assert torch.isfinite(deformable.offset.weight.grad).all()
