import pytest
import torch

from cellseg.model.attention import ATTENTION, CBAM, MIN_HIDDEN, SqueezeExcitation

every_kind = pytest.mark.parametrize("kind", list(ATTENTION))


def make(kind, channels=32, reduction=4):
    torch.manual_seed(0)
    return ATTENTION[kind](channels, reduction)


def set_last(layer, value: float) -> None:
    """The logits of this layer become ``value`` everywhere."""
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, value)


@every_kind
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 9)])
def test_shape_and_dtype_stay(kind, size):
    features = torch.randn(2, 32, *size)
    result = make(kind)(features)
    assert (result.shape, result.dtype) == (features.shape, features.dtype)


@every_kind
def test_gates_begin_near_one(kind):
    features = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(make(kind)(features), features, rtol=0.01, atol=0)


@every_kind
def test_every_parameter_gets_gradients_in_the_first_step(kind):
    module, generator = make(kind), torch.Generator().manual_seed(1)
    features, goal = (torch.randn(2, 32, 8, 8, generator=generator) for _ in range(2))
    (module(features) * goal).sum().backward()
    assert {name for name, p in module.named_parameters() if not p.grad.any()} == set()


@every_kind
@pytest.mark.parametrize(("logit", "gate"), [(-100.0, 0.0), (0.0, 1.0), (100.0, 2.0)])
def test_a_gate_lies_between_0_and_2(kind, logit, gate):
    module, features = make(kind), torch.randn(1, 32, 4, 4)
    set_last(module.mlp[-1], logit)
    torch.testing.assert_close(module(features), gate * features)


def test_squeeze_excitation_sees_means_alone():
    module, features = make("se"), torch.randn(1, 32, 4, 4)
    torch.nn.init.normal_(module.mlp[-1].weight)
    shuffled = features.flatten(2)[..., torch.randperm(16)].reshape(features.shape)
    gates = (module(x) / x for x in (features, shuffled))
    torch.testing.assert_close(*(gate.mean((2, 3)) for gate in gates))


def test_cbam_tells_a_peak_from_a_plain_of_the_same_mean():
    module = make("cbam")
    torch.nn.init.normal_(module.mlp[-1].weight)
    plain, peak = torch.ones(1, 32, 4, 4), torch.zeros(1, 32, 4, 4)
    peak[..., 1, 1] = 16
    gate_of_plain, gate_of_peak = (module(x)[..., 1, 1] / x[..., 1, 1] for x in (plain, peak))
    assert not torch.allclose(gate_of_plain, gate_of_peak, rtol=0.01)


def test_cbam_gates_places_by_their_surroundings_of_7_by_7():
    module, features = make("cbam"), torch.ones(1, 32, 15, 15)
    set_last(module.mlp[-1], 0.0)
    torch.nn.init.ones_(module.places.weight)
    features[..., 7, 7] = -50
    changed = module(features)[0, 0] != module(torch.ones(1, 32, 15, 15))[0, 0]
    assert changed[4:11, 4:11].all()
    assert changed.sum() == 49


@pytest.mark.parametrize(("channels", "reduction", "hidden"), [(256, 16, 16), (256, 4, 64), (64, 16, 4), (64, 64, 4)])
@pytest.mark.parametrize("kind", [SqueezeExcitation, CBAM])
def test_the_reduction_divides_the_hidden_channels_down_to_a_minimum(kind, channels, reduction, hidden):
    assert kind(channels, reduction).mlp[0].out_channels == hidden >= MIN_HIDDEN
