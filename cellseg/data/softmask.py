"""Predicted masks before they are cut at a threshold: probabilities in a window of the image.

Probabilities are stored as bytes, so a cell costs as many bytes as its box has pixels. At threshold 0.5 cutting the
bytes gives the same mask as cutting the probabilities; elsewhere they differ by at most 1/510.

Shape suffixes: h height and w width of a window, 4 = top, left, bottom, right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from cellseg.data.rle import encode_window

ONE = 255
"""The byte that stands for probability 1."""


@dataclass(frozen=True, slots=True, eq=False)
class SoftMask:
    """The probabilities of one cell's pixels; 0 outside of its window, which may be empty."""

    top: int
    left: int
    """Row and column of the window's corner in the image."""
    values_hw: np.ndarray
    """(h, w) uint8: probability times ``ONE``. The window lies inside the image."""

    @classmethod
    def of(cls, probabilities_hw: np.ndarray, top: int, left: int, size: tuple[int, int]) -> Self:
        """Make the mask of probabilities (h, w) in [0, 1], cut off at the border of an image of ``size``."""
        height, width = size
        inside_hw = probabilities_hw[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        return cls(max(top, 0), max(left, 0), np.rint(inside_hw * ONE).astype(np.uint8))

    @classmethod
    def mean(cls, masks: Sequence[Self], weights: Sequence[float] | np.ndarray) -> Self:
        """Average one or more masks, with positive weights."""
        window = _union(masks)
        total_hw = np.zeros((window[2] - window[0], window[3] - window[1]), np.float32)
        for mask, weight in zip(masks, np.asarray(weights) / np.sum(weights), strict=True):
            if mask.values_hw.size:
                mask._inside(total_hw, window)[...] += np.float32(weight) * mask.values_hw
        return cls(window[0], window[1], np.rint(total_hw).astype(np.uint8))

    @classmethod
    def union(cls, masks: Sequence[Self]) -> Self:
        """Take the highest probability of one or more masks for each pixel."""
        window = _union(masks)
        highest_hw = np.zeros((window[2] - window[0], window[3] - window[1]), np.uint8)
        for mask in masks:
            if mask.values_hw.size:
                place_hw = mask._inside(highest_hw, window)
                np.maximum(place_hw, mask.values_hw, out=place_hw)
        return cls(window[0], window[1], highest_hw)

    def cut(self, threshold: float) -> np.ndarray:
        """Return the pixels (h, w) bool of the window whose probability is at least ``threshold``."""
        return self.values_hw >= threshold * ONE

    def encode(self, threshold: float, size: tuple[int, int]) -> dict:
        """Encode the mask at ``threshold`` as the RLE of an image of ``size``."""
        return encode_window(self.cut(threshold), self.top, self.left, *size)

    def _inside(self, array_hw: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
        """Return the view of an array over ``window`` that this mask covers."""
        (h, w), row, column = self.values_hw.shape, self.top - window[0], self.left - window[1]
        return array_hw[row : row + h, column : column + w]


def _union(masks: Sequence[SoftMask]) -> tuple[int, int, int, int]:
    """Return the smallest window that contains those of all ``masks``; of empty ones if all are."""
    masks = [mask for mask in masks if mask.values_hw.size] or masks[:1]
    return (
        min(mask.top for mask in masks),
        min(mask.left for mask in masks),
        max(mask.top + mask.values_hw.shape[0] for mask in masks),
        max(mask.left + mask.values_hw.shape[1] for mask in masks),
    )


def mask_iou(one: SoftMask, one_hw: np.ndarray, other: SoftMask, other_hw: np.ndarray) -> float:
    """Compute the IoU of two masks whose cut windows the caller already has; 0 if both are empty."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom = min(one.top + one_hw.shape[0], other.top + other_hw.shape[0])
    right = min(one.left + one_hw.shape[1], other.left + other_hw.shape[1])
    if top >= bottom or left >= right:
        return 0.0
    mine_hw = one_hw[top - one.top : bottom - one.top, left - one.left : right - one.left]
    yours_hw = other_hw[top - other.top : bottom - other.top, left - other.left : right - other.left]
    common = np.count_nonzero(mine_hw & yours_hw)
    total = np.count_nonzero(one_hw) + np.count_nonzero(other_hw) - common
    return common / total if total else 0.0
