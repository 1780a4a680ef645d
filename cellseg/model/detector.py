"""The detector as a whole: normalise and pad, feature maps, proposals, heads."""

from collections import OrderedDict

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cellseg.config import parse_normalization


class Normalize(GeneralizedRCNNTransform):
    """torchvision's transform without its resizing and pasting: normalises, then pads with 0 to a batch.

    Scale is set once, in :mod:`cellseg.data.resize`, for training and prediction alike; masks are returned unchanged.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, normalization: str) -> None:
        mean, std = parse_normalization(normalization)
        super().__init__(0, 0, list(mean), list(std))
        # Buffers move with the model but are not saved. New tensors for each image would wait for the GPU.
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(std)[:, None, None], persistent=False)

    def normalize(self, image: Tensor) -> Tensor:
        return (image - self.mean_C11) / self.std_C11

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        return result


class Detector(GeneralizedRCNN):
    """torchvision's, without its check of every target box, for which the host would wait for a GPU: boxes of
    :func:`cellseg.data.targets.make_target` always have an area."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation: see :func:`cellseg.model.build.build_model`."""
        assert targets is not None or not self.training
        batch: ImageList
        batch, targets = self.transform(images, targets)
        features: OrderedDict[str, Tensor] = self.backbone(batch.tensors)
        proposals, of_proposals = self.rpn(batch, features, targets)
        detections, of_heads = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return of_heads | of_proposals if self.training else detections
