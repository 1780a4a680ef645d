import math

import pytest
import torch
from torch import nn

from cellseg.config import OptimConfig
from cellseg.optim import build_optimizer, learning_rate, set_learning_rate

STEPS, EPOCHS = 10, 4  # 40 steps in all


def rates(config: OptimConfig, steps: int = STEPS, epochs: int = EPOCHS) -> list[float]:
    return [learning_rate(config, step, steps, epochs) for step in range(steps * epochs)]


def test_a_constant_rate_stays():
    assert set(rates(OptimConfig(lr=0.3, schedule="constant"))) == {0.3}


def test_warmup_rises_in_a_line_to_the_peak_and_a_cosine_falls_to_almost_0():
    course = rates(OptimConfig(lr=0.8, schedule="warmup-cosine", warmup_fraction=0.2))
    assert course[:8] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert max(course) == course[7] == course[8] == 0.8
    assert course[24] == pytest.approx(0.4)  # half way between the end of the warm-up and the end
    assert course[8:] == sorted(course[8:], reverse=True)
    assert course[-1] == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi * 31 / 32)))
    assert 0 < course[-1] < 0.01 * 0.8


def test_without_warmup_the_cosine_starts_at_the_peak():
    course = rates(OptimConfig(lr=0.8, warmup_fraction=0.0))
    assert course[0] == 0.8
    assert course[20] == pytest.approx(0.4)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (1, 2), (3, 1), (7, 5)])
def test_a_rate_is_positive_and_at_most_the_peak_however_short_the_run(fraction, steps, epochs):
    course = rates(OptimConfig(lr=1.0, warmup_fraction=fraction), steps, epochs)
    assert all(0 < rate <= 1 for rate in course)


def test_step_decays_after_whole_epochs():
    course = rates(OptimConfig(lr=1.0, schedule="step", step_epochs=2, gamma=0.1))
    assert course[:20] == [1.0] * 20
    assert course[20:] == pytest.approx([0.1] * 20)
    three = rates(OptimConfig(lr=1.0, schedule="step", step_epochs=1, gamma=0.5), steps=2, epochs=3)
    assert three == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def network() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    return module


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


def test_every_group_gets_the_rate():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=1)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
