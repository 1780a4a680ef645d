"""Validation: COCO figures and the training loss on the validation images. The run stays as it is."""

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from cellseg.config import LossConfig, TrialConfig
from cellseg.data.batch import Item
from cellseg.data.detections import Detections
from cellseg.data.loader import plain_item
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.evaluate import evaluate
from cellseg.inference.image import predict_images
from cellseg.training.epoch_report import TrainingError
from cellseg.training.loss_weights import total_loss

SAMPLING_SEED = 0
"""Seed of the sampling of anchors, proposals and points: each image's is the same in every epoch and every run."""

CHOOSERS = (GeneralizedRCNN, RegionProposalNetwork, RoIHeads)
"""The modules of a detector that compute losses in training and detections in evaluation."""


class Validation:
    """The validation images of a run, and a thread of its own that compares masks while the caller goes on."""

    def __init__(self, data: PackedDataset, indices: tuple[int, ...], config: TrialConfig):
        """``config``: resolved by :func:`cellseg.data.auto.resolve_auto`."""
        self.config = config
        self.class_names = data.class_names
        self.samples = [data[index] for index in indices]  # views into the table
        self.truths = [Detections.from_sample(sample) for sample in self.samples]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="validation")

    def start(self, model: nn.Module, amp_dtype: torch.dtype | None, epoch: int) -> "Future[dict[str, float]]":
        """Predict with ``model``, which may change after this call; the figures follow in the background.

        Returns:
            Those of :func:`cellseg.evaluate.evaluate`, ``loss/validation``, and the totals ``count/detections`` and
            ``count/cells``, all finite.

        Raises:
            TrainingError: the loss is not finite.
        """
        predictions = predict_images(model, (sample.image_HWC for sample in self.samples), self.config)
        items = (plain_item(sample, self.config.data) for sample in self.samples)
        loss = validation_loss(model, items, self.config.loss, amp_dtype)
        if not math.isfinite(loss):
            raise TrainingError("non-finite", f"loss/validation in epoch {epoch}")
        return self._thread.submit(self._figures, predictions, loss)

    def rehearse(self, model: nn.Module) -> None:
        """Predict the largest image, for the memory it takes."""
        areas = [math.prod(scaled_size(*sample.size, self.config.data)) for sample in self.samples]
        predict_images(model, [self.samples[int(np.argmax(areas))].image_HWC], self.config)

    def close(self) -> None:
        """Wait for the comparison in progress and drop those that have not begun."""
        self._thread.shutdown(cancel_futures=True)

    def _figures(self, predictions: list[Detections], loss: float) -> dict[str, float]:
        return {
            **evaluate(predictions, self.truths, self.class_names),
            "loss/validation": loss,
            "count/detections": float(sum(map(len, predictions))),
            "count/cells": float(sum(map(len, self.truths))),
        }


@contextmanager
def computing_losses(model: nn.Module) -> Iterator[None]:
    """Make the detector return losses while its norms and dropout behave as in prediction."""
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
    """Compute the mean over the images of each image's weighted sum of losses.

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
