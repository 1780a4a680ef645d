"""Instance planes: many cells in a few integer images.

A plane holds cell numbers, 0 is background (see :class:`cellseg.data.sample.Sample`). Geometry is applied to planes
with nearest neighbour; boxes, labels and masks are read from them afterwards, so they cannot drift apart.

Shape suffixes: P planes, H height, W width, N cells, R runs of neighbouring pixels in a row that have the same number,
4 = x1, y1, x2, y2 in pixels with exclusive right and bottom edge.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

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
    """Find the cells of ``planes_PHW`` that cover at least ``min_area`` pixels.

    Args:
        planes_PHW: cell numbers; numbers that an augmentation moved out of the image are simply absent.
        labels_N: class of cell ``i + 1``, for all cells the sample had before augmentation.
        min_area: cells with fewer pixels are left out (their pixels stay in the planes, as background to the losses).
    """
    num_planes, height, _ = planes_PHW.shape
    number_R, row_R, start_R, stop_R = _runs(planes_PHW)
    begins_cell_R = np.ones(len(number_R), dtype=bool)
    np.not_equal(number_R[1:], number_R[:-1], out=begins_cell_R[1:])
    if num_planes > 1:  # a number in two planes, which breaks the rule, is two cells
        begins_cell_R[1:] |= np.diff(row_R // height) != 0
    first_N = np.flatnonzero(begins_cell_R)
    areas_N = np.add.reduceat(stop_R - start_R, first_N)
    top_N, bottom_N = row_R[first_N], np.maximum.reduceat(row_R, first_N) + 1
    plane_N = top_N // height
    edges_4N = [
        np.minimum.reduceat(start_R, first_N),
        top_N - plane_N * height,
        np.maximum.reduceat(stop_R, first_N),
        bottom_N - plane_N * height,
    ]
    kept = areas_N >= min_area
    numbers_N = number_R[first_N][kept].astype(np.int64)
    return Instances(
        boxes_N4=np.stack(edges_4N, axis=1)[kept].astype(np.float32),
        labels_N=np.asarray(labels_N, dtype=np.int64)[numbers_N - 1],
        numbers_N=numbers_N,
        plane_N=plane_N[kept],
        areas_N=areas_N[kept],
    )


def stack_masks(
    masks: Iterable[tuple[np.ndarray, tuple[int, int], int]], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Build planes and labels from cells that may overlap.

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
        assert len(labels) <= MAX_INSTANCES, "readers refuse such images earlier"
        for plane_HW in planes:
            if not plane_HW[rows, columns][mask_hw].any():
                break
        else:
            plane_HW = np.zeros((height, width), np.uint16)
            planes.append(plane_HW)
        plane_HW[rows, columns][mask_hw] = len(labels)
    return np.stack(planes), np.asarray(labels, dtype=np.int64)


def _runs(planes_PHW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the runs of cells, not of background, in the order of their numbers and then from top to bottom.

    There are far fewer runs than pixels, and they are found quickly: ``scipy.ndimage.find_objects`` for boxes and
    ``numpy.bincount`` for areas take three to five times as long.

    Returns:
        For each run its number (in the type of the planes), its row, its first column and the one after its last
        (int64). Rows are counted as if each plane were below the one before it.
    """
    width = planes_PHW.shape[2]
    pixels = planes_PHW.ravel()
    is_edge = np.zeros(len(pixels) + 1, dtype=bool)
    np.not_equal(pixels[1:], pixels[:-1], out=is_edge[1 : len(pixels)])
    is_edge[::width] = True  # a run ends with its row, and the last one with the pixels
    edges = np.flatnonzero(is_edge)
    numbers = pixels[edges[:-1]]
    cells = np.flatnonzero(numbers != 0)
    cells = cells[np.argsort(numbers[cells], kind="stable")]
    first_R, after_R = edges[cells], edges[cells + 1]
    row_R = first_R // width
    row_begins_R = row_R * width
    return numbers[cells], row_R, first_R - row_begins_R, after_R - row_begins_R
