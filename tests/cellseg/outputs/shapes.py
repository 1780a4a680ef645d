"""Masks as detections."""

import numpy as np

from cellseg.data.detections import Detections
from cellseg.data.rle import encode_window


def detections(*masks, scores=None, labels=None) -> Detections:
    """Detections of (H, W) bool masks; scores fall from 0.9, classes are 1."""
    height, width = masks[0].shape if masks else (8, 9)
    count = len(masks)
    boxes = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] for ys, xs in map(np.nonzero, masks)]
    return Detections(
        (height, width),
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(scores if scores is not None else np.linspace(0.9, 0.5, count), np.float32),
        np.array(labels if labels is not None else [1] * count, np.int64),
        tuple(encode_window(mask, 0, 0, height, width) for mask in masks),
    )


def disc(height: int, width: int, y: float, x: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
