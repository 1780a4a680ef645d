"""Validation: COCO metrics and the training loss on the validation images, without an effect on the run."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from cellseg.config import LossConfig, TrialConfig
from cellseg.data.batch import Item
from cellseg.data.detections import Detections
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.device import Room, exhausted_memory
from cellseg.errors import first_line
from cellseg.evaluate import evaluate
from cellseg.inference.image import predict_images
from cellseg.training.epoch_report import TrainingError
from cellseg.training.loss_weights import total_loss
from cellseg.training.validation_images import ValidationImages

SAMPLING_SEED = 0
"""Seed of the sampling of anchors, proposals and points: the same for each image in every epoch and run."""

CHOOSERS = (GeneralizedRCNN, RegionProposalNetwork, RoIHeads)
"""The modules of a detector that compute losses in training and detections in evaluation."""


class Validation:
    """The validation images of a run, with a background thread that compares masks."""

    def __init__(self, data: PackedDataset, indices: tuple[int, ...], config: TrialConfig, device: torch.device):
        """``config``: resolved by :func:`cellseg.data.auto.resolve_auto`."""
        self.config = config
        self.class_names = data.class_names
        self.indices = indices
        self.samples = [data[index] for index in indices]  # views into the table
        self.images = ValidationImages.of(data, config.data)
        self.truths = [self.images.truth(index) for index in indices]
        self.room = Room.of(device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="validation")

    def start(self, model: nn.Module, amp_dtype: torch.dtype | None, epoch: int) -> "Future[dict[str, float]]":
        """Predict with ``model``, which may change after this call; the metrics follow in the background.

        If memory runs out, fewer images at a time go through the network.

        Returns:
            Those of :func:`cellseg.evaluate.evaluate`, ``loss/validation``, and the totals ``count/detections`` and
            ``count/cells``, all finite.

        Raises:
            TrainingError: the loss is not finite, or an image does not fit into memory by itself.
        """
        with self._naming_images():
            by_size = sorted(zip(self._sizes(), self.indices, strict=True))
            items = (self.images.item(index) for _, index in by_size)
            loss = validation_loss(model, items, self.config.loss, amp_dtype, self.room)
            predictions = self._predict(model, range(len(self.indices)))
        if not math.isfinite(loss):
            raise TrainingError("non-finite", f"loss/validation in epoch {epoch}")
        return self._thread.submit(self._figures, predictions, loss)

    def rehearse(self, model: nn.Module) -> None:
        """Predict the largest image, to see whether it fits into memory.

        Raises:
            TrainingError: it does not fit.
        """
        areas = [math.prod(size) for size in self._sizes()]
        with self._naming_images():
            self._predict(model, [int(np.argmax(areas))])

    def _predict(self, model: nn.Module, positions: Sequence[int]) -> list[Detections]:
        """The detections in the images at these positions in ``samples``."""

        def scale(number: int, size: tuple[int, int]) -> np.ndarray:
            return self.images.scaled(self.indices[positions[number]], size)

        images = [self.samples[position].image_HWC for position in positions]
        return predict_images(model, images, self.config, room=self.room, scale=scale)

    def _sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image as the network sees it, in pixels."""
        return [scaled_size(*sample.size, self.config.data) for sample in self.samples]

    @contextmanager
    def _naming_images(self) -> Iterator[None]:
        """Report a lack of memory as one of validation images: a smaller training batch would not help."""
        try:
            yield
        except Exception as error:
            if exhausted_memory(error) is None:
                raise
            height, width = max(self._sizes(), key=math.prod)
            raise TrainingError(
                "out-of-memory",
                f"validation images of up to {height} x {width} px do not fit, even one at a time "
                f"({first_line(error)})",
            ) from error

    def close(self) -> None:
        """Wait for the comparison in progress and cancel those that have not started."""
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
    model: nn.Module,
    items: Iterable[Item],
    config: LossConfig,
    amp_dtype: torch.dtype | None = None,
    room: Room | None = None,
) -> float:
    """Compute the mean over the images of each image's weighted sum of losses.

    It does not depend on the batch size. The weights, the statistics of norms and torch's generators are left as they
    are. Consecutive images of equal size share a pass through the backbone, as many as ``room`` allows.

    Args:
        items: one or more images with targets, on any device.
        amp_dtype: that of the training's autocast, or None.
        room: the memory limit found so far; updated. None: start with the default.

    Returns:
        Possibly not finite, as the weights may be.

    Raises:
        torch.OutOfMemoryError, ...: an image does not fit into memory by itself.
    """
    device = next(model.parameters()).device
    room = room or Room.of(device)
    totals: list[Tensor] = []
    with (
        computing_losses(model),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.inference_mode(),
        torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None),
    ):
        for together in _alike(items, room):
            _, height, width = together[0][0].shape
            totals += room.map(lambda chunk: _losses_of_each(model, chunk, config), together, height * width)
    # Exactly rounded: the order of the images does not matter. The only transfer from the device.
    values = torch.stack(totals).tolist()
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _alike(items: Iterable[Item], room: Room) -> Iterator[list[Item]]:
    """Group consecutive items of equal size, as many together as ``room`` allows."""
    together: list[Item] = []
    for item in items:
        shape = item[0].shape
        if together and (shape != together[0][0].shape or len(together) >= room.count(shape[1] * shape[2])):
            yield together
            together = []
        together.append(item)
    if together:
        yield together


def _losses_of_each(model: Any, items: Sequence[Item], config: LossConfig) -> list[Tensor]:
    """Compute the weighted loss of each of ``items``, all of one size, independently of the others."""
    device = next(model.parameters()).device
    images = [image_CHW.to(device).float() / 255 for image_CHW, _ in items]
    targets = [{name: value.to(device) for name, value in target.items()} for _, target in items]
    batch, targets = model.transform(images, targets)
    features = model.backbone(batch.tensors)
    totals = []
    for index, target in enumerate(targets):
        torch.manual_seed(SAMPLING_SEED)
        alone = ImageList(batch.tensors[index : index + 1], batch.image_sizes[index : index + 1])
        of_image = {name: map_BCHW[index : index + 1] for name, map_BCHW in features.items()}
        proposals, losses = model.rpn(alone, of_image, [target])
        _, more_losses = model.roi_heads(of_image, proposals, alone.image_sizes, [target])
        totals.append(total_loss(more_losses | losses, config).float())
    return totals
