import pytest
import torch
from torch import nn

from cellseg.training.ema import WeightAverage, decay_of_update


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(value)


def test_an_average_forgets_fast_at_first_and_then_as_it_is_told():
    assert [decay_of_update(0.9, update) for update in (0, 1, 10, 100, 10_000)] == [0.1, 2 / 11, 11 / 20, 0.9, 0.9]
    assert decay_of_update(0.05, 0) == 0.05


def test_an_update_keeps_a_share_of_the_average_and_takes_the_rest_from_the_weights():
    model = network()
    set_all(model, 1.0)
    average = WeightAverage(model, decay=0.15)
    set_all(model, 2.0)
    average.update(model, 0)
    for parameter in average.model.parameters():
        assert parameter.flatten().tolist() == pytest.approx([0.1 * 1 + 0.9 * 2] * parameter.numel())
    set_all(model, 5.0)
    average.update(model, 1)
    for parameter in average.model.parameters():
        assert parameter.flatten().tolist() == pytest.approx([0.15 * 1.9 + 0.85 * 5] * parameter.numel())
    assert all((parameter == 5.0).all() for parameter in model.parameters())


def test_buffers_are_copied_and_frozen_weights_stay():
    model = network()
    model[0].requires_grad_(False)
    average = WeightAverage(model, decay=0.9)
    frozen = [parameter.clone() for parameter in model[0].parameters()]
    model(torch.randn(8, 2))
    average.update(model, 50)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)
    assert average.model[1].num_batches_tracked == 1
    assert all(torch.equal(a, b) for a, b in zip(average.model[0].parameters(), frozen, strict=True))


def test_the_averages_model_is_of_the_same_form_and_does_not_train():
    model = network()
    average = WeightAverage(model, decay=0.9)
    assert average.model.state_dict().keys() == model.state_dict().keys()
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
