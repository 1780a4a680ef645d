"""``auto`` becomes a value: settings that follow from the training data."""

import math

import numpy as np

from cellseg.config import DataConfig, TrialConfig
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.data.statistics import COCO_DETECTIONS, anchors_for


def resolve_auto(config: TrialConfig, data: PackedDataset) -> TrialConfig:
    """``config`` with every ``auto`` that depends on the data replaced; what a checkpoint stores as its config."""
    model = config.model
    values: dict[str, object] = {}
    if model.anchors == "auto":
        values["model__anchors"] = anchors_for(cell_sides(data, config.data))
    if model.detections_per_image == "auto":
        values["model__detections_per_image"] = detections_for(data)
    return config.replace(**values) if values else config


def cell_sides(data: PackedDataset, config: DataConfig) -> np.ndarray:
    """Sides sqrt(w * h) of all cells' boxes in pixels of the network's input, (cells,) float64."""
    sides = []
    for index, (height, width) in enumerate(data.sizes):
        boxes_N4 = data.boxes(index)
        new_height, new_width = scaled_size(int(height), int(width), config)
        scale = math.sqrt(new_height * new_width / (height * width))
        sides.append(scale * np.sqrt((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])))
    return np.concatenate(sides) if sides else np.zeros(0)


def detections_for(data: PackedDataset) -> int:
    """Twice the most cells of any image, and no fewer than COCO's 100."""
    most = max((len(data.labels(index)) for index in range(len(data))), default=0)
    return max(COCO_DETECTIONS, 2 * most)
