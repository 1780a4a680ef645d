"""Scaling and colour: from the image on disk to the image that the network sees.

Rule: training, validation and prediction bring an image to the network through :func:`scaled_size`,
:func:`resize_image` and :func:`to_color`, with the same ``DataConfig``, and in no other way. The figures of a
network that was trained at one scale or colour and tested at another mean nothing.

Shape suffixes: P planes, H height, W width, C colour channels.
"""

from typing import Literal

import cv2
import numpy as np

from cellseg.config import DataConfig

SMALLEST_SIDE = 8
"""Pixels: no factor of multi-scale training or testing makes a side shorter than this."""


def scaled_size(height: int, width: int, data: DataConfig) -> tuple[int, int]:
    """Return (height, width) in pixels at which the network sees an image of ``height`` x ``width``.

    With ``data.resize`` ``square`` both sides become ``data.shorter_side``, whatever the image's aspect. Otherwise:

    The shorter side becomes ``data.shorter_side`` (native size where that is None), unless the longer side would then
    exceed ``data.longer_side``: then the longer side becomes that. The aspect is kept to a pixel; no side is below 1.
    """
    if data.resize == "square":
        assert data.shorter_side is not None, "DataConfig sees to it"
        return data.shorter_side, data.shorter_side
    shorter, longer = sorted((height, width))
    factor = 1.0 if data.shorter_side is None else data.shorter_side / shorter
    factor = min(factor, data.longer_side / longer)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def multiply_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Multiply ``size`` (height, width) in pixels by ``factor``, for multi-scale training and testing.

    No side shrinks below ``SMALLEST_SIDE``; a side that is below it already does not shrink. ``data.longer_side`` is no
    limit: it has shaped ``size``, and the factor is asked for on top of that.
    """
    height, width = (max(round(side * factor), min(side, SMALLEST_SIDE)) for side in size)
    return height, width


def resize_image(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize ``image_HWC`` (uint8, RGB) to ``size`` (height, width).

    Shrinking averages the pixels that fall together, growing interpolates linearly. An image that shrinks along one
    side and grows along the other does one after the other. At its own size the image is returned as it is.
    """
    height, width = image_HWC.shape[:2]
    if (height, width) == tuple(size):
        return image_HWC
    if (size[0] - height) * (size[1] - width) < 0:
        image_HWC = resize_image(image_HWC, (min(size[0], height), min(size[1], width)))
        height, width = image_HWC.shape[:2]
    shrinks = size[0] * size[1] < height * width
    return cv2.resize(image_HWC, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_planes(planes_PHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize ``planes_PHW`` (any integer type, any values) to ``size`` (height, width) with nearest neighbour.

    The pixel whose area contains the new pixel's centre is taken, so planes and images keep lying on each other. Cells
    thinner than the shrinking factor may vanish. At their own size the planes are returned as they are.
    """
    height, width = planes_PHW.shape[1:]
    if (height, width) == tuple(size):
        return planes_PHW
    return planes_PHW[:, _nearest(size[0], height)[:, None], _nearest(size[1], width)]


def to_color(image_HWC: np.ndarray, color: Literal["rgb", "grey"]) -> np.ndarray:
    """Return ``image_HWC`` (uint8, RGB) unchanged, or its luminance in all three channels."""
    if color == "rgb":
        return image_HWC
    return cv2.cvtColor(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _nearest(new: int, old: int) -> np.ndarray:
    """Find the nearest of ``old`` pixels for each of ``new`` ones along a side: floor((i + 1/2) old / new), exactly."""
    return (2 * np.arange(new) + 1) * old // (2 * new)
