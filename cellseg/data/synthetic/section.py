"""A tissue section that fills with cells: where the next one fits, which cells it hides, and what stays visible.

Shape suffixes: H, W the image; h, w a cell's window; S stains.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellseg.data.synthetic.kinds import STAINS, Drawing

MIN_VISIBLE = 30
"""Fewest visible pixels of a cell; one with fewer is neither drawn nor annotated."""
SEE_THROUGH = 24
"""Where two cells of different classes share at most this many pixels, both are seen, and both masks hold them."""

Window = tuple[slice, slice]
"""Rows and columns."""

_CLOSED = -1  # in _front_HW: two cells are seen here already; there is no room for a third


@dataclass(slots=True)
class PlacedCell:
    """A cell in the image; its window lies inside the image."""

    label: int
    """Class, from 1."""
    top: int
    left: int
    mask_hw: np.ndarray
    """bool: the visible part of the cell. Shrinks when another is placed in front."""


class Section:
    """Cells in one section, the later ones in front of the earlier ones."""

    def __init__(self, height: int, width: int):
        self.cells: list[PlacedCell] = []
        self.stain_HWS = np.zeros((height, width, len(STAINS)), np.float32)
        """Stain of the cells alone."""
        self.clear_HW = np.ones((height, width), np.float32)
        """Share of the background that shows: 1 beside the cells, 0 under them."""
        self._front_HW = np.zeros((height, width), np.int32)  # number of the foremost cell, from 1; 0 for none

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._front_HW.shape[0], self._front_HW.shape[1]

    def covered(self, drawing: Drawing, centre: tuple[int, int]) -> int:
        """Count the pixels of present cells that the drawing would cover."""
        window, cut = self._window(drawing, centre)
        return int(np.count_nonzero(self._front_HW[window][drawing.mask_hw[cut]]))

    def has_room(self, drawing: Drawing, centre: tuple[int, int], max_hidden: float) -> bool:
        """Return whether the drawing, centred on the pixel (row, column), leaves enough of every cell visible.

        Of the new cell and of each it covers, :data:`MIN_VISIBLE` pixels must remain, in one piece, and no other cell
        may lose more than ``max_hidden``, a share of its visible part.
        """
        window, cut = self._window(drawing, centre)
        mask_hw = drawing.mask_hw[cut]
        if not _is_one_piece(mask_hw):
            return False
        under_hw = np.where(mask_hw, self._front_HW[window], 0)
        if (under_hw == _CLOSED).any():
            return False
        for number in np.unique(under_hw[under_hw > 0]):
            cell = self.cells[number - 1]
            rest_hw = _without(cell, under_hw == number, window)
            if rest_hw.sum() < (1 - max_hidden) * cell.mask_hw.sum() or not _is_one_piece(rest_hw):
                return False
        return True

    def add(self, drawing: Drawing, label: int, centre: tuple[int, int]) -> None:
        """Put the drawing, centred on the pixel (row, column), in front of all other cells."""
        window, cut = self._window(drawing, centre)
        mask_hw, cover_hw = drawing.mask_hw[cut], drawing.cover_hw[cut]
        front_hw, hides_hw = self._front_HW[window], cover_hw.copy()
        under_hw = np.where(mask_hw, front_hw, 0)
        self.cells.append(PlacedCell(label, window[0].start, window[1].start, mask_hw))
        front_hw[mask_hw] = len(self.cells)
        for number in np.unique(under_hw[under_hw > 0]):
            cell, shared_hw = self.cells[number - 1], under_hw == number
            if cell.label != label and np.count_nonzero(shared_hw) <= SEE_THROUGH:
                hides_hw[shared_hw] *= 0.4
                front_hw[shared_hw] = _CLOSED
            else:
                cell.mask_hw = _without(cell, shared_hw, window)
        self.clear_HW[window] *= 1 - cover_hw
        self.stain_HWS[window] *= 1 - hides_hw[..., None]
        self.stain_HWS[window] += cover_hw[..., None] * drawing.stain_hwS[cut]

    def _window(self, drawing: Drawing, centre: tuple[int, int]) -> tuple[Window, Window]:
        """Return the window of the image that the drawing covers, and the part of the drawing inside it."""
        spans = []
        for middle, extent, limit in zip(centre, drawing.cover_hw.shape, self.size, strict=True):
            start = middle - extent // 2
            spans.append((slice(max(start, 0), min(start + extent, limit)), start))
        window = spans[0][0], spans[1][0]
        rows, columns = (slice(span.start - start, span.stop - start) for span, start in spans)
        return window, (rows, columns)


def _is_one_piece(mask_hw: np.ndarray) -> bool:
    """Return whether the mask is large enough to be seen and holds together, if only over corners."""
    return bool(mask_hw.sum() >= MIN_VISIBLE and ndimage.label(mask_hw, structure=np.ones((3, 3)))[1] == 1)


def _without(cell: PlacedCell, hidden_hw: np.ndarray, window: Window) -> np.ndarray:
    """Return the cell's mask without the pixels set in ``hidden_hw``, a mask of another window."""
    rows, columns = np.nonzero(hidden_hw)
    rest_hw = cell.mask_hw.copy()
    rest_hw[rows + window[0].start - cell.top, columns + window[1].start - cell.left] = False
    return rest_hw
