import math

import pytest
import torch

from cellseg.config import LossConfig
from cellseg.errors import UserError
from cellseg.training.loss_weights import loss_weights, total_loss

NAMES = [f"loss_{field}" for field in LossConfig.model_fields]


def scalars() -> dict[str, torch.Tensor]:
    """A loss 1, 2, 4, ... by each name, so that every sum of some is another."""
    return {name: torch.tensor(2.0**i, requires_grad=True) for i, name in enumerate(NAMES)}


def test_by_default_all_losses_but_dice_are_summed():
    losses = scalars()
    assert total_loss(losses, LossConfig()) == sum(loss for name, loss in losses.items() if name != "loss_dice")


@pytest.mark.parametrize("field", LossConfig.model_fields)
def test_every_weight_multiplies_its_loss_and_no_other(field):
    losses = scalars()
    total_loss(losses, LossConfig(**{field: 2.5})).backward()
    gradients = {name: loss.grad for name, loss in losses.items() if loss.grad is not None}
    assert gradients == dict.fromkeys((set(NAMES) - {"loss_dice"}) | {f"loss_{field}"}, 1.0) | {f"loss_{field}": 2.5}


def test_a_loss_of_weight_0_is_out_of_the_graph_and_its_nan_does_no_harm():
    losses = scalars()
    broken = losses["loss_point"] * math.nan
    total = total_loss(losses | {"loss_point": broken}, LossConfig(point=0))
    total.backward()
    assert total.isfinite()
    assert losses["loss_point"].grad is None


def test_floats_are_summed_as_tensors_are():
    assert total_loss({"loss_mask": 0.5, "loss_dice": 3.0}, LossConfig(mask=4, dice=2)) == 8.0


def test_losses_that_the_model_does_not_have_need_no_value():
    assert loss_weights(["loss_mask"], LossConfig(point=3)) == {"loss_mask": 1.0}


def test_a_loss_without_a_field_is_our_own_bug():
    with pytest.raises(AssertionError, match="loss_other"):
        loss_weights(["loss_mask", "loss_other"], LossConfig())


def test_a_model_without_any_weighted_loss_cannot_train():
    with pytest.raises(UserError, match=r"one of the model's losses must have a weight, but got 0 for loss\.mask, los"):
        total_loss({"loss_mask": torch.ones(()), "loss_box_reg": torch.ones(())}, LossConfig(mask=0, box_reg=0))
