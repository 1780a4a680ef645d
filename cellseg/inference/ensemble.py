"""Several models that predict together, each in all its views; one model is the simplest case.

Shape suffixes: H height, W width, C colour channels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cellseg.config import TrialConfig
from cellseg.data.detections import Detections
from cellseg.device import Room
from cellseg.errors import UserError
from cellseg.inference.fusion import fuse
from cellseg.inference.image import load_model, predict_images

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cellseg.checkpoint import Checkpoint


@dataclass(frozen=True)
class Member:
    """A model of an ensemble."""

    model: "nn.Module"
    config: TrialConfig
    weight: float = 1.0
    """Weight of its votes, positive."""

    @classmethod
    def load(
        cls,
        checkpoint: "Checkpoint",
        device: "torch.device | str",
        config: TrialConfig | None = None,
        weight: float = 1.0,
    ) -> "Member":
        """Load the model of a checkpoint. ``config``: how it predicts, if not as the checkpoint says."""
        config = config or checkpoint.config
        return cls(load_model(checkpoint, device, config.inference), config, weight)


class Ensemble:
    """Models whose detections are fused. The first one's config says how, and how many cells an image may have."""

    def __init__(self, members: Sequence[Member]):
        assert members, "an ensemble has a member"
        self.members = tuple(members)

    def predict(
        self, images: Iterable[np.ndarray], *, room: Room | None = None, soft: bool = False
    ) -> list[Detections]:
        """Find the cells of each image; see :func:`cellseg.inference.image.predict_images`.

        A single member's detections are those of its model.
        """
        images = list(images)
        first = self.members[0]
        if len(self.members) == 1:
            return predict_images(first.model, images, first.config, room=room, soft=soft)
        of_members = [predict_images(m.model, images, m.config, room=room, soft=True) for m in self.members]
        fused = [fuse_members(votes, first.config, self.weights) for votes in zip(*of_members, strict=True)]
        return fused if soft else [replace(found, soft=None) for found in fused]

    @property
    def parameters(self) -> list[int]:
        """The number of parameters of each member, frozen ones included."""
        return [sum(parameter.numel() for parameter in member.model.parameters()) for member in self.members]

    @property
    def weights(self) -> list[float]:
        """The weight of each member."""
        return [member.weight for member in self.members]


def fuse_members(votes: Sequence[Detections], config: TrialConfig, weights: Sequence[float] | None) -> Detections:
    """Fuse what the members of an ensemble found in one image.

    Args:
        votes: with soft masks.
        config: that of the first member. In tiles an image may have as many cells as the most of a member's.
    """
    per_image = config.model.detections_per_image
    assert isinstance(per_image, int), "resolve_auto comes first"
    return fuse(votes, config.inference, max(per_image, *map(len, votes)), weights)


def describe_parameters(counts: Sequence[int]) -> str:
    """Describe the parameters of several models: their sum, and its parts."""
    parts = f" ({' + '.join(f'{count:,}' for count in counts)})" if len(counts) > 1 else ""
    return f"{sum(counts):,}{parts}"


def check_parameters(counts: Sequence[int], limit: int | None) -> None:
    """Refuse models that have too many parameters together.

    Args:
        counts: parameters of each model, see :attr:`cellseg.checkpoint.CheckpointInfo.parameters`.
        limit: of ``--max-params``; None: any number.

    Raises:
        UserError: more than ``limit``.
    """
    if limit is not None and sum(counts) > limit:
        raise UserError(
            f"--max-params: all models together must have at most {limit:,} parameters, but got "
            f"{describe_parameters(counts)}. Export fewer models with --top-k, or raise the limit."
        )
