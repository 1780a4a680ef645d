"""The total loss: the weighted sum of a model's losses."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import Tensor

from cellseg.config import LossConfig
from cellseg.errors import UserError

PREFIX = "loss_"
"""Prefix of a loss in the model's output: ``loss_mask`` has the weight ``loss.mask``."""

Loss = TypeVar("Loss", Tensor, float)


def loss_weights(names: Collection[str], config: LossConfig) -> dict[str, float]:
    """Return the weight of each of ``names`` whose weight is not 0, in their order.

    Raises:
        UserError: all weights are 0.
    """
    unknown = [name for name in names if name.removeprefix(PREFIX) not in LossConfig.model_fields]
    assert not unknown, f"losses without a weight in LossConfig: {unknown}"
    weights = {name: getattr(config, name.removeprefix(PREFIX)) for name in names}
    if not any(weights.values()):
        keys = ", ".join(f"loss.{name.removeprefix(PREFIX)}" for name in names)
        raise UserError(f"loss: one of the model's losses must have a weight, but got 0 for {keys}. Raise one.")
    return {name: weight for name, weight in weights.items() if weight}


def total_loss(losses: Mapping[str, Loss], config: LossConfig) -> Loss:
    """Compute the weighted sum of ``losses``, scalars by name as the model returns them.

    A loss of weight 0 is left out of the sum and of its graph: it costs no backward pass, and its NaN does no harm.

    Raises:
        UserError: all weights are 0.
    """
    return sum(weight * losses[name] for name, weight in loss_weights(losses, config).items())  # type: ignore[return-value]
