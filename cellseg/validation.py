"""The training loss on validation images, which changes nothing about the run."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from cellseg.config import LossConfig
from cellseg.data.loader import Item
from cellseg.losses import total_loss

SAMPLING_SEED = 0
"""Seed of the sampling of anchors, proposals and points: each image's is the same in every epoch and every run."""

CHOOSERS = (GeneralizedRCNN, RegionProposalNetwork, RoIHeads)
"""The modules of a detector that compute losses in training and detections in evaluation."""


@contextmanager
def computing_losses(model: nn.Module) -> Iterator[None]:
    """Within this context the detector returns losses, while its norms and dropout behave as in prediction."""
    was_training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, CHOOSERS):
            module.training = True
    try:
        yield
    finally:
        model.train(was_training)


def validation_loss(
    model: nn.Module, items: Iterable[Item], config: LossConfig, amp_dtype: torch.dtype | None = None
) -> float:
    """The weighted sum of the losses of each image by itself, mean over the images.

    It does not depend on the batch size. The weights, the statistics of norms and torch's generators are left as they
    are.

    Args:
        items: one or more images with targets, on any device.
        amp_dtype: that of the training's autocast, or None.

    Returns:
        Possibly not finite, as the weights may be.
    """
    device = next(model.parameters()).device
    totals = []
    with (
        computing_losses(model),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None),
    ):
        for image_CHW, target in items:
            torch.manual_seed(SAMPLING_SEED)
            image = image_CHW.to(device).float() / 255
            losses = model([image], [{name: value.to(device) for name, value in target.items()}])
            totals.append(total_loss(losses, config).float())
    return float(torch.stack(totals).mean())
