"""The cells of one image as all outputs show them: numbered, best first, each with at least one pixel of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cellseg.data.detections import Detections
from cellseg.data.rle import decode_window
from cellseg.inference.outputs.outlines import Polygon, outline

ROWS_AT_ONCE = 1024
"""Rows of a label image that are counted or renumbered at a time."""


@dataclass(frozen=True)
class ImageCells:
    """What the writers are given: an image and its N cells. Cell ``i`` has the number ``i + 1`` in every output."""

    name: str
    """Unique among the images that are predicted together; the stem of every file."""
    path: Path
    image_HWC: np.ndarray
    """(H, W, 3) uint8, RGB."""
    cells: Detections
    """N cells, best first."""
    labels_HW: np.ndarray
    """(H, W) uint32: the number of the cell at each pixel, 0 for background. Where cells overlap, it is the one with
    the higher score. Each number from 1 to N is there."""
    num_covered: int
    """Detections left out because no pixel of theirs is visible below cells of higher scores, or because their masks
    are empty."""
    class_names: Sequence[str]
    category_ids: Sequence[int]

    @cached_property
    def outlines(self) -> list[list[Polygon]]:
        """The polygons of each cell; a cell may have several parts."""
        return [outline(rle) for rle in self.cells.rles]

    def class_name(self, index: int) -> str:
        """Name of the class of the cell at ``index``."""
        return self.class_names[int(self.cells.labels_N[index]) - 1]

    @classmethod
    def of(
        cls,
        name: str,
        path: Path,
        image_HWC: np.ndarray,
        found: Detections,
        class_names: Sequence[str],
        category_ids: Sequence[int],
    ) -> "ImageCells":
        """Number the cells, and leave out those that others cover wholly."""
        cells, labels_HW = number_cells(found)
        covered = len(found) - len(cells)
        return cls(name, path, image_HWC, cells, labels_HW, covered, class_names, category_ids)


def number_cells(found: Detections) -> tuple[Detections, np.ndarray]:
    """Draw detections into a label image, where higher scores cover lower ones; of equal scores the first covers.

    Memory is that of the label image and the largest cell.

    Returns:
        (cells, labels_HW): the detections that are visible, best first, and their numbers 1, 2, ... as (H, W) uint32.
    """
    ranked = found.select(np.argsort(-found.scores_N, kind="stable"))
    labels_HW = np.zeros(found.size, dtype=np.uint32)
    for index in range(len(ranked) - 1, -1, -1):
        top, left, mask_hw = decode_window(ranked.rles[index])
        height, width = mask_hw.shape
        labels_HW[top : top + height, left : left + width][mask_hw] = index + 1
    seen = np.zeros(len(ranked) + 1, dtype=bool)
    blocks = range(0, labels_HW.shape[0], ROWS_AT_ONCE)
    for start in blocks:
        seen[labels_HW[start : start + ROWS_AT_ONCE]] = True
    visible = np.flatnonzero(seen[1:])
    if len(visible) < len(ranked):
        numbers = np.zeros(len(ranked) + 1, dtype=np.uint32)
        numbers[visible + 1] = np.arange(1, len(visible) + 1)
        for start in blocks:
            rows = slice(start, start + ROWS_AT_ONCE)
            labels_HW[rows] = numbers[labels_HW[rows]]
    return ranked.select(visible), labels_HW
