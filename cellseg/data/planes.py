"""Instance planes: many cells in few integer images.

A plane holds cell numbers, 0 is background (see :class:`cellseg.data.sample.Sample`). Geometry is applied to planes
with nearest neighbour; boxes, labels and masks are read from them afterwards, so they cannot drift apart.

Shape suffixes: P planes, H height, W width, N cells, 4 = x1, y1, x2, y2 in pixels with exclusive right and bottom edge.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellseg.data.sample import MAX_INSTANCES


@dataclass(frozen=True, slots=True)
class Instances:
    """The cells that are present in a stack of planes, in the order of their numbers. N may be 0."""

    boxes_N4: np.ndarray
    """(N, 4) float32: x1, y1, x2, y2 with exclusive right and bottom edge, so x2 - x1 is the width in pixels."""
    labels_N: np.ndarray
    """(N,) int64 classes, from 1."""
    numbers_N: np.ndarray
    """(N,) int64: the value of the cell's pixels in its plane."""
    plane_N: np.ndarray
    """(N,) int64: the plane the cell lies in."""
    areas_N: np.ndarray
    """(N,) int64: pixels of the cell."""


def read_instances(planes_PHW: np.ndarray, labels_N: np.ndarray, min_area: int = 1) -> Instances:
    """The cells of ``planes_PHW`` that cover at least ``min_area`` pixels.

    Args:
        planes_PHW: cell numbers; numbers that an augmentation moved out of the image are simply absent.
        labels_N: class of cell ``i + 1``, for all cells the sample had before augmentation.
        min_area: cells with fewer pixels are left out (their pixels stay in the planes, as background to the losses).
    """
    boxes, numbers, plane_of, areas = [], [], [], []
    for index, plane_HW in enumerate(planes_PHW):
        counts = np.bincount(plane_HW.ravel(), minlength=1)
        for number, window in enumerate(ndimage.find_objects(plane_HW), start=1):
            if window is not None and counts[number] >= min_area:
                rows, columns = window
                boxes.append((columns.start, rows.start, columns.stop, rows.stop))
                numbers.append(number)
                plane_of.append(index)
                areas.append(counts[number])
    order = np.argsort(np.asarray(numbers, dtype=np.int64), kind="stable")
    numbers_N = np.asarray(numbers, dtype=np.int64)[order]
    return Instances(
        boxes_N4=np.asarray(boxes, dtype=np.float32).reshape(-1, 4)[order],
        labels_N=np.asarray(labels_N, dtype=np.int64)[numbers_N - 1],
        numbers_N=numbers_N,
        plane_N=np.asarray(plane_of, dtype=np.int64)[order],
        areas_N=np.asarray(areas, dtype=np.int64)[order],
    )


def stack_masks(
    masks: Iterable[tuple[np.ndarray, tuple[int, int], int]], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Planes and labels from cells that may overlap.

    Each cell goes, in order, to the first plane in which all its pixels are free; cells without a pixel are skipped.

    Args:
        masks: for each cell its (h, w) bool mask, the (row, column) of that mask's corner in the image, and its class.
            Parts outside the image are cut off.

    Returns:
        planes_PHW uint16 with P >= 1, labels_N int64.
    """
    planes = [np.zeros((height, width), np.uint16)]
    labels: list[int] = []
    for mask_hw, (top, left), label in masks:
        rows, columns = slice(max(top, 0), top + mask_hw.shape[0]), slice(max(left, 0), left + mask_hw.shape[1])
        mask_hw = mask_hw[max(-top, 0) :, max(-left, 0) :]
        mask_hw = mask_hw[: max(height - rows.start, 0), : max(width - columns.start, 0)]
        if not mask_hw.any():
            continue
        labels.append(label)
        assert len(labels) <= MAX_INSTANCES, "readers refuse such images before they come here"
        for plane_HW in planes:
            if not plane_HW[rows, columns][mask_hw].any():
                break
        else:
            plane_HW = np.zeros((height, width), np.uint16)
            planes.append(plane_HW)
        plane_HW[rows, columns][mask_hw] = len(labels)
    return np.stack(planes), np.asarray(labels, dtype=np.int64)
