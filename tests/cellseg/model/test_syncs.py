"""How often the host of a GPU waits for it in a training step, counted on the CPU."""

import pytest
import torch

from benchmarks.operators import Operators, count_as_on_a_gpu
from cellseg.data.auto import resolve_auto
from cellseg.data.loader import plain_item
from cellseg.model.build import build_model
from cellseg.training.ema import WeightAverage
from cellseg.training.stepper import Stepper

WAITS = 2
"""One for which proposals are left, one for what was drawn from them."""

SETTINGS = {
    "v1": {},
    "v2": {"model__detector": "v2"},
    "frozen": {"model__norm": "frozen"},
    "pointrend": {"model__mask_head": "pointrend"},
    "iou": {"model__rpn_assignment": "iou"},
    "two-levels": {"model__roi_levels": "0,1"},
    "sgd": {"optim__optimizer": "sgd", "optim__clip_norm": None},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_training_step_waits_twice(tiny_config, packed, settings):
    config = resolve_auto(tiny_config(optim__ema_decay=0.9, **settings), packed)
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, packed.num_classes).train()
    stepper, average = Stepper(model, config, torch.device("cpu")), WeightAverage(model, 0.9)
    batch = [plain_item(packed[index], config.data) for index in range(3)]

    def train() -> None:
        losses = stepper.add_gradients(batch)
        stepper.step(1e-3)
        average.update(model, 0)
        told.append(losses)

    told: list[dict[str, torch.Tensor]] = []
    train()  # makes what later steps find: anchors, moments
    counted = count_as_on_a_gpu(train)
    assert counted.waits <= WAITS, counted.waited
    assert all(torch.isfinite(loss) for loss in told[1].values())


def test_the_counter_sees_what_waits():
    values = torch.arange(6.0)
    mask = values > 2
    waits = [
        lambda: values[mask],
        lambda: values.sum().item(),
        lambda: bool(mask.any()),
        lambda: torch.nonzero(mask),
        lambda: torch.where(mask),
        lambda: values.unique(),
        lambda: values.tolist(),
        lambda: values.cpu(),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: torch.masked_select(values, mask),
        lambda: torch.repeat_interleave(torch.tensor([1, 2])),
    ]
    for wait in waits:
        with Operators() as counted:
            wait()
        assert counted.waits >= 1
    with Operators() as counted:
        torch.where(mask, values, 0)
        values[torch.arange(2)]
        values.reshape(2, 3).t().detach()
    assert counted.waits == 0
    assert counted.launched["where"] == 1
    assert not {"view", "t", "detach"} & set(counted.launched)
