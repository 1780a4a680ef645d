"""Settings that follow from the data: ``auto``, and ``dataset`` normalisation."""

import math
from collections.abc import Sequence

import numpy as np

from cellseg.config import DataConfig, TrialConfig
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size, to_color
from cellseg.data.statistics import COCO_DETECTIONS, anchors_for

PIXELS_PER_IMAGE = 1 << 16
"""Pixels per image that count for the normalisation; larger images are subsampled along both sides."""

FEWEST_PROPOSALS = 1000
"""torchvision's number of the RPN's candidates per level and of its proposals, in prediction."""
CANDIDATES_PER_CELL, PROPOSALS_PER_CELL = 4, 2
"""Of 1,000 cells on 1024 x 1024 px, 1000 candidates and 1000 proposals reach 63 to 79 %, 4000 and 2000 reach 98 %: the
anchors of a cell's neighbours are candidates too, and suppression leaves some of each."""

SMALLEST_DEVIATION = 1 / 255
"""Smallest standard deviation of the normalisation, one grey level: a channel without variation is neither amplified to
noise nor divided by zero."""


def resolve_auto(config: TrialConfig, data: PackedDataset) -> TrialConfig:
    """Replace every setting of ``config`` that depends on the data by its value. A checkpoint stores the result.

    Raises:
        UserError: normalisation follows from the training images, but there are too few images to split.
    """
    model = config.model
    values: dict[str, object] = {}
    if model.anchors == "auto":
        values["model__anchors"] = anchors_for(cell_sides(data, config.data))
    if model.rpn_candidates == "auto":
        values["model__rpn_candidates"] = candidates_for(data)
    if model.rpn_proposals == "auto":
        values["model__rpn_proposals"] = proposals_for(data)
    if model.detections_per_image == "auto":
        values["model__detections_per_image"] = detections_for(data)
    if model.normalization == "dataset":
        values["model__normalization"] = normalization_for(data, data.split(config.data).training, config.data)
    return config.replace(**values) if values else config


def cell_sides(data: PackedDataset, config: DataConfig) -> np.ndarray:
    """Compute the sides sqrt(w * h) of all cells' boxes in pixels of the network's input, (cells,) float64.

    They are those of validation and prediction: ``train_scale_min``, which shrinks training images now and then, does
    not count. Where ``square`` distorts an image, a side is scaled by the root of the area's factor.
    """
    sides = []
    for index, (height, width) in enumerate(data.sizes):
        boxes_N4 = data.boxes(index)
        new_height, new_width = scaled_size(int(height), int(width), config)
        scale = math.sqrt(new_height * new_width / (height * width))
        sides.append(scale * np.sqrt((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])))
    return np.concatenate(sides) if sides else np.zeros(0)


def candidates_for(data: PackedDataset) -> int:
    """Return four times the largest number of cells in an image, at least torchvision's 1000."""
    return max(FEWEST_PROPOSALS, CANDIDATES_PER_CELL * most_cells(data))


def proposals_for(data: PackedDataset) -> int:
    """Return twice the largest number of cells in an image, at least torchvision's 1000."""
    return max(FEWEST_PROPOSALS, PROPOSALS_PER_CELL * most_cells(data))


def detections_for(data: PackedDataset) -> int:
    """Return twice the largest number of cells in an image, and at least COCO's 100."""
    return max(COCO_DETECTIONS, 2 * most_cells(data))


def most_cells(data: PackedDataset) -> int:
    """Return the number of cells of the densest image."""
    return int(data.label_counts.sum(axis=1).max(initial=0))


def normalization_for(data: PackedDataset, indices: Sequence[int], config: DataConfig) -> str:
    """Write mean and deviation of the pixel values in [0, 1] of the images at ``indices`` as ``R,G,B/R,G,B``.

    Values are those the network sees (``config.color``), at the images' own scale. Every image weighs the same, however
    large it is, as it does in training: an epoch visits each once. The deviation is that of a pixel of a random image
    from the mean, so it holds differences between images as well as within them.
    """
    moments = np.array([_moments(to_color(_some_pixels(data[index].image_HWC), config.color)) for index in indices])
    mean_C, square_C = moments.mean(axis=0)
    deviation_C = np.sqrt((square_C - mean_C**2).clip(min=0)).clip(min=SMALLEST_DEVIATION)
    return "/".join(",".join(f"{value:.4f}" for value in values_C) for values_C in (mean_C, deviation_C))


def _some_pixels(image_HWC: np.ndarray) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    step = math.ceil(math.sqrt(height * width / PIXELS_PER_IMAGE))
    return np.ascontiguousarray(image_HWC[::step, ::step])


def _moments(image_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the means (C,) of uint8 values, as shares of 255, and of their squares."""
    values_HWC = image_HWC / 255
    return values_HWC.mean(axis=(0, 1)), np.square(values_HWC).mean(axis=(0, 1))
