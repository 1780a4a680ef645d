"""Conditional fields: those that matter only for some values of others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cellseg.config.model import CONVNEXTS, NUM_STAGES, RESNETS


class OneOf(frozenset):
    """A condition that holds for these values."""

    def __str__(self) -> str:
        return " or ".join(sorted(map(str, self)))


@dataclass(frozen=True)
class AnyBut:
    """A condition that holds for all values but these."""

    values: frozenset

    def __contains__(self, value: Any) -> bool:
        return value not in self.values

    def __str__(self) -> str:
        return "anything but " + " or ".join(sorted(map(str, self.values)))


Condition = OneOf | AnyBut
"""Values of a field, as a container."""

_SOME_STAGE_TRAINS = AnyBut(frozenset({NUM_STAGES}))
_IN_RESIDUAL_BLOCKS: dict[str, Condition] = {
    "model.backbone": OneOf(RESNETS),
    "model.frozen_stages": _SOME_STAGE_TRAINS,
}
_POINTREND: dict[str, Condition] = {"model.mask_head": OneOf({"pointrend"})}
_FOLDS: dict[str, Condition] = {"data.validation": OneOf({"folds"})}
_PLATEAU: dict[str, Condition] = {"optim.schedule": OneOf({"plateau"})}

ACTIVE_WHEN: Mapping[str, Mapping[str, Condition]] = {
    "data.longer_side": {"data.resize": OneOf({"aspect"})},
    "data.num_folds": _FOLDS,
    "data.fold": _FOLDS,
    "data.split_seed": _FOLDS,
    "data.groups": _FOLDS,
    "augment.strength": {
        "augment.preset": AnyBut(frozenset({"none", "flips", "reported-aug", "reported-elastic"})),
    },
    "model.norm": {"model.backbone": AnyBut(frozenset(CONVNEXTS)), "model.frozen_stages": _SOME_STAGE_TRAINS},
    "model.attention": _IN_RESIDUAL_BLOCKS,
    "model.attention_reduction": {"model.attention": OneOf({"se", "cbam"})},
    "model.deformable_stages": _IN_RESIDUAL_BLOCKS,
    "model.rpn_foreground_iou": {"model.rpn_assignment": OneOf({"iou"})},
    "model.rpn_background_iou": {"model.rpn_assignment": OneOf({"iou"})},
    "model.rpn_atss_places": {"model.rpn_assignment": OneOf({"atss"})},
    "model.point_samples": _POINTREND,
    "model.point_doublings": _POINTREND,
    "loss.point": _POINTREND,
    "optim.momentum": {"optim.optimizer": OneOf({"sgd"})},
    "optim.backbone_lr_factor": {"model.frozen_stages": _SOME_STAGE_TRAINS},
    "optim.step_epochs": {"optim.schedule": OneOf({"step"})},
    "optim.gamma": {"optim.schedule": OneOf({"step"})},
    "optim.restart_epochs": {"optim.schedule": OneOf({"warm-restarts"})},
    "optim.restart_multiplier": {"optim.schedule": OneOf({"warm-restarts"})},
    "optim.warmup_fraction": {"optim.schedule": OneOf({"warmup-cosine"})},
    "optim.warmup_epochs": _PLATEAU,
    "optim.warmup_factor": _PLATEAU | {"optim.warmup_epochs": AnyBut(frozenset({0}))},
    "optim.plateau_watch": _PLATEAU,
    "optim.plateau_patience": _PLATEAU,
    "optim.plateau_factor": _PLATEAU,
    "train.stop_after_decays": _PLATEAU,
    "inference.mask_pasting": {"model.mask_alignment": OneOf({"torchvision"})},
    "inference.nms_threshold": {"inference.nms": OneOf({"hard"})},
    "inference.soft_nms_sigma": {"inference.nms": OneOf({"soft"})},
    "inference.tile_overlap": {"inference.tile": AnyBut(frozenset({None}))},
}
"""Field -> the values of other fields for which it has an effect; all must hold. A space must sample such a field
under these conditions only."""
