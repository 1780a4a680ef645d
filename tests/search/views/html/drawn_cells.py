"""Cells as squares, for tests that match found cells with true ones."""

import numpy as np

from cellseg.data.detections import Detections
from cellseg.data.rle import encode_window

SIZE = (64, 64)


def square(top: int, left: int, side: int) -> dict:
    return encode_window(np.ones((side, side), np.uint8), top, left, *SIZE)


def cells(*items: tuple[int, int, int, int, float]) -> Detections:
    """Squares of (top, left, side, label, score)."""
    if not items:
        return Detections.empty(SIZE)
    boxes_N4 = np.array([(left, top, left + side, top + side) for top, left, side, _, _ in items], np.float32)
    return Detections(
        SIZE,
        boxes_N4,
        np.array([item[4] for item in items], np.float32),
        np.array([item[3] for item in items], np.int64),
        tuple(square(top, left, side) for top, left, side, _, _ in items),
    )
