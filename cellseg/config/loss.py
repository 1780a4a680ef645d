"""Loss weights."""

from typing import Self

from pydantic import model_validator

from cellseg.config.base import NotNegative, Part
from cellseg.errors import Problem, RuleError


class LossConfig(Part):
    """Weights of the losses, whose weighted sum training minimises. 0 leaves a loss out."""

    objectness: NotNegative = 1.0
    """RPN: cell or background at each anchor (binary cross-entropy)."""
    rpn_box_reg: NotNegative = 1.0
    """RPN: from the anchor to the cell's box (smooth L1)."""
    classifier: NotNegative = 1.0
    """Box head: class of a proposal (cross-entropy)."""
    box_reg: NotNegative = 1.0
    """Box head: from the proposal to the cell's box (smooth L1)."""
    mask: NotNegative = 1.0
    """Mask head: cell or not, pixel by pixel (binary cross-entropy)."""
    dice: NotNegative = 0.0
    """Mask head: 1 - Dice coefficient of each mask (Milletari et al. 2016), beside the cross-entropy."""
    point: NotNegative = 1.0
    """pointrend: cell or not at the sampled points (binary cross-entropy)."""

    @model_validator(mode="after")
    def _something_is_minimised(self) -> Self:
        if not any(self.model_dump().values()):
            raise RuleError(Problem("loss.mask", "one loss must have a weight above 0", "0 for all", "Raise one."))
        return self
