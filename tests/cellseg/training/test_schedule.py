import math
import random

import pytest
import torch
from torch.optim import lr_scheduler

from cellseg.config import OptimConfig
from cellseg.training.schedule import learning_rate, num_decays

STEPS, EPOCHS = 10, 4  # 40 steps in all


def rates(config: OptimConfig, steps: int = STEPS, epochs: int = EPOCHS) -> list[float]:
    return [learning_rate(config, step, steps, epochs) for step in range(steps * epochs)]


def torch_rates(make, count: int) -> list[float]:
    """The rate before each of ``count`` steps of the scheduler that ``make`` makes of an optimiser of rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    course = []
    for _ in range(count):
        course.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return course


def test_a_constant_rate_stays():
    assert set(rates(OptimConfig(lr=0.3, schedule="constant"))) == {0.3}


def test_step_decays_after_whole_epochs():
    course = rates(OptimConfig(lr=1.0, schedule="step", step_epochs=2, gamma=0.1))
    assert course[:20] == [1.0] * 20
    assert course[20:] == pytest.approx([0.1] * 20)
    three = rates(OptimConfig(lr=1.0, schedule="step", step_epochs=1, gamma=0.5), steps=2, epochs=3)
    assert three == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(("step_epochs", "gamma"), [(1, 0.5), (3, 0.1), (4, 0.9)])
def test_step_is_torchs(step_epochs, gamma):
    config = OptimConfig(lr=1.0, schedule="step", step_epochs=step_epochs, gamma=gamma)
    expected = torch_rates(lambda optimizer: lr_scheduler.StepLR(optimizer, step_epochs, gamma), 10)
    assert rates(config, steps=1, epochs=10) == pytest.approx(expected)


def test_cosine_is_torchs_over_all_steps_and_ends_almost_at_0():
    course = rates(OptimConfig(lr=1.0, schedule="cosine"))
    assert course == pytest.approx(torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS * EPOCHS), 40))
    assert course[0] == 1.0 and course[20] == pytest.approx(0.5) and 0 < course[-1] < 0.01


@pytest.mark.parametrize(("restart_epochs", "multiplier"), [(1, 1), (2, 1), (1, 2), (2, 3), (50, 1)])
def test_warm_restarts_are_torchs(restart_epochs, multiplier):
    config = OptimConfig(lr=1.0, schedule="warm-restarts", restart_epochs=restart_epochs, restart_multiplier=multiplier)
    expected = torch_rates(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=restart_epochs * 3, T_mult=multiplier), 30
    )
    assert rates(config, steps=3, epochs=10) == pytest.approx(expected)


def test_warm_restarts_begin_with_an_epoch():
    config = OptimConfig(lr=1.0, schedule="warm-restarts", restart_epochs=1, restart_multiplier=2)
    course = rates(config, steps=4, epochs=7)
    assert [step for step, rate in enumerate(course) if rate == 1.0] == [0, 4, 12]


def test_warmup_rises_in_a_line_to_the_peak_and_a_cosine_falls_to_almost_0():
    course = rates(OptimConfig(lr=0.8, schedule="warmup-cosine", warmup_fraction=0.2))
    assert course[:8] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert max(course) == course[7] == course[8] == 0.8
    assert course[24] == pytest.approx(0.4)  # half way between the end of the warm-up and the end
    assert course[8:] == sorted(course[8:], reverse=True)
    assert course[-1] == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi * 31 / 32)))
    assert 0 < course[-1] < 0.01 * 0.8


def test_a_warmup_of_less_than_half_a_step_is_none():
    course = rates(OptimConfig(lr=0.8, warmup_fraction=0.01))
    assert course == rates(OptimConfig(lr=0.8, schedule="cosine"))


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "warm-restarts", "warmup-cosine", "plateau"])
@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5, 0.99])
@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (1, 2), (3, 1), (7, 5)])
def test_a_rate_is_positive_and_at_most_the_peak_however_short_the_run(schedule, fraction, steps, epochs):
    course = rates(OptimConfig(lr=1.0, schedule=schedule, warmup_fraction=fraction, warmup_epochs=1), steps, epochs)
    assert all(0 < rate <= 1 for rate in course)


def test_plateau_warms_up_and_is_then_lowered_by_each_decay():
    config = OptimConfig(lr=1.0, schedule="plateau", warmup_epochs=2, warmup_factor=0.2, plateau_factor=0.5)
    assert rates(config, steps=3, epochs=4) == [0.2] * 6 + [1.0] * 6
    assert [learning_rate(config, 6, 3, 9, decays) for decays in range(4)] == [1.0, 0.5, 0.25, 0.125]
    assert learning_rate(config, 5, 3, 9, decays=0) == 0.2


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "warm-restarts", "warmup-cosine"])
def test_only_plateau_looks_at_decays(schedule):
    config = OptimConfig(schedule=schedule)
    assert learning_rate(config, 7, STEPS, EPOCHS, decays=3) == learning_rate(config, 7, STEPS, EPOCHS)


@pytest.mark.parametrize(
    ("gains", "warmup", "patience", "decays"),
    [
        ([], 0, 1, 0),
        ([1], 0, 1, 0),
        ([1, 2, 3], 0, 1, 0),
        ([1, 1], 0, 1, 1),  # an equal is no new best
        ([1, 0.5, 0.6], 0, 2, 1),  # two epochs in a row without a new best
        ([1, 0.5, 2, 0.5], 0, 2, 0),  # not in a row
        ([1, 0, 0, 0, 0], 0, 2, 2),  # the row starts anew after a decay
        ([1, 0, 0, 0.5, 0.6], 0, 2, 2),  # while the best stays
        ([-3, -2, -2.5], 0, 1, 1),  # losses
        ([0, 0, 0], 2, 1, 0),  # the warm-up does not count
        ([5, 0, 0], 1, 1, 1),  # nor sets the best
        ([0, 0], 5, 1, 0),
        ([-math.inf, -math.inf], 0, 1, 2),
    ],
)
def test_decays_are_counted_from_the_course_of_the_watched_value(gains, warmup, patience, decays):
    assert num_decays(gains, warmup, patience) == decays


@pytest.mark.parametrize("seed", range(20))
def test_plateaus_are_torchs_with_a_patience_less_by_one(seed):
    rng = random.Random(seed)
    patience, gains = rng.randint(1, 4), [rng.randint(0, 6) for _ in range(25)]  # with equals
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience - 1, threshold=0, threshold_mode="abs", eps=0
    )
    for epoch, gain in enumerate(gains, start=1):
        scheduler.step(gain)
        assert optimizer.param_groups[0]["lr"] == 0.5 ** num_decays(gains[:epoch], 0, patience)
