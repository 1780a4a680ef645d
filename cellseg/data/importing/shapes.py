"""Shapes that annotation tools draw, as masks of pixels.

Coordinates are x to the right and y downwards, in pixels from the image's top left corner, so pixel (row, column) is
the square from (column, row) to (column + 1, row + 1). A pixel belongs to a shape if its centre does: the rule of
ImageJ and QuPath. So an outline that follows the edges of pixels gives back exactly these.

Shape suffixes: H height and W width of an image, h and w of a window in it, N points, 2 = x, y.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

CROSSINGS = 1 << 22
"""Crossings of edges with rows that are looked at together: outlines may be longer than memory allows for."""

Window = tuple[np.ndarray, tuple[int, int]]
"""(h, w) bool mask with a set pixel, and the (row, column) of its corner in the image."""


class Shape(Protocol):
    """One cell, or all cells of a mask file."""

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """Yield the cells as masks, cut off at the edges of an image of this size; none for cells without a pixel.

        Raises:
            UserError: a mask of another size, or a file that cannot be read.
        """


@dataclass(frozen=True)
class Outlines:
    """Polygons, each with its holes, that together are one cell."""

    parts: tuple[tuple[np.ndarray, ...], ...]
    """For each polygon its outer ring and then its holes, each (N, 2) float64. Rings close by themselves."""

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """See :class:`Shape`."""
        window = _Canvas.around([ring for part in self.parts for ring in part[:1]], height, width)
        if window is None:
            return
        total_hw = np.zeros((window.height, window.width), dtype=bool)
        for outer, *holes in self.parts:
            mask_hw = window.winding([outer]) != 0  # outlines that cross themselves are filled all over
            for hole in holes:
                mask_hw &= window.winding([hole]) == 0
            total_hw |= mask_hw
        yield from _trimmed(total_hw, window.top, window.left)


@dataclass(frozen=True)
class Paths:
    """Closed paths of which what is inside an odd number belongs to the cell, as in ImageJ's composite selections."""

    rings: tuple[np.ndarray, ...]
    """Each (N, 2) float64."""

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """See :class:`Shape`."""
        window = _Canvas.around(self.rings, height, width)
        if window is not None:
            yield from _trimmed(window.winding(self.rings, signed=False) % 2 == 1, window.top, window.left)


@dataclass(frozen=True)
class Ellipse:
    """An ellipse."""

    center: tuple[float, float]
    """x, y."""
    radii: tuple[float, float]
    """Half of its width and of its height, before it is turned."""
    degrees: float = 0.0
    """How far it is turned, clockwise on the screen."""

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """See :class:`Shape`."""
        (x, y), reach = self.center, max(self.radii)
        corners = np.array([[x - reach, y - reach], [x + reach, y + reach]])
        window = _Canvas.around([corners], height, width)
        if window is None or min(self.radii) <= 0:
            return
        dy, dx = np.mgrid[: window.height, : window.width]
        dx, dy = dx + window.left + 0.5 - x, dy + window.top + 0.5 - y
        cosine, sine = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
        mask_hw = (along / self.radii[0]) ** 2 + (across / self.radii[1]) ** 2 <= 1
        yield from _trimmed(mask_hw, window.top, window.left)


@dataclass(frozen=True)
class Bitmap:
    """A mask of a part of the image."""

    mask_hw: np.ndarray
    """(h, w) bool."""
    corner: tuple[int, int]
    """(row, column) in the image; may be negative."""

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """See :class:`Shape`."""
        top, left = self.corner
        mask_hw = self.mask_hw[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        yield from _trimmed(mask_hw, max(top, 0), max(left, 0))


@dataclass(frozen=True)
class Union:
    """Several shapes that together are one cell."""

    shapes: tuple[Shape, ...]

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """See :class:`Shape`."""
        windows = [window for shape in self.shapes for window in shape.masks(height, width)]
        if not windows:
            return
        top, left = (min(corner[axis] for _, corner in windows) for axis in (0, 1))
        bottom, right = (max(corner[axis] + mask.shape[axis] for mask, corner in windows) for axis in (0, 1))
        total_hw = np.zeros((bottom - top, right - left), dtype=bool)
        for mask_hw, (row, column) in windows:
            total_hw[row - top :, column - left :][: mask_hw.shape[0], : mask_hw.shape[1]] |= mask_hw
        yield total_hw, (top, left)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> Outlines:
    """A rectangle between two opposite corners."""
    return Outlines(((np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=np.float64),),))


def ring_of(points: object) -> np.ndarray:
    """Convert a list of [x, y] to a ring (N, 2) float64; further numbers of a point are dropped.

    Raises:
        ValueError: fewer than three points, or what is no finite number; the message follows on ``where: ``.
    """
    try:
        ring_N2 = np.array([[float(point[0]), float(point[1])] for point in points], dtype=np.float64)  # type: ignore[attr-defined]
    except (TypeError, ValueError, IndexError, KeyError):
        raise ValueError(f"an outline must be a list of x, y pairs, but got {str(points)[:60]}.") from None
    if len(ring_N2) < 3 or not np.isfinite(ring_N2).all():
        raise ValueError(f"an outline must have at least three points of finite numbers, but got {str(points)[:60]}.")
    return ring_N2


@dataclass(frozen=True)
class _Canvas:
    """The window of an image that a shape can reach."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def around(cls, rings: Sequence[np.ndarray], height: int, width: int) -> "_Canvas | None":
        points_N2 = np.concatenate([np.zeros((0, 2)), *rings])
        if not len(points_N2):
            return None
        (left, top), (right, bottom) = np.floor(points_N2.min(axis=0)), np.ceil(points_N2.max(axis=0))
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            return None
        return cls(int(top), int(left), int(bottom - top), int(right - left))

    def winding(self, rings: Sequence[np.ndarray], signed: bool = True) -> np.ndarray:
        """Count for each pixel's centre how often the rings go around it; (h, w) int32.

        Every edge changes the count of all centres to its right, in the rows that it crosses.

        Args:
            signed: clockwise and anticlockwise cancel out.
        """
        starts = np.concatenate(rings)
        ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
        rising = starts[:, 1] < ends[:, 1]
        sign = np.where(rising, 1, -1) if signed else np.ones(len(rising), dtype=int)
        low, high = np.where(rising[:, None], starts, ends), np.where(rising[:, None], ends, starts)
        first = np.clip(np.ceil(low[:, 1] - 0.5), self.top, self.top + self.height).astype(int)
        after = np.clip(np.ceil(high[:, 1] - 0.5), self.top, self.top + self.height).astype(int)
        counts = np.maximum(after - first, 0)
        changes_hw = np.zeros((self.height, self.width + 1), dtype=np.int32)
        total = np.cumsum(counts)
        bounds = np.searchsorted(total, np.arange(CROSSINGS, total[-1], CROSSINGS))
        for edges in np.split(np.arange(len(starts)), bounds):
            edge = np.repeat(edges, counts[edges])
            before = np.repeat(np.cumsum(counts[edges]) - counts[edges], counts[edges])
            row = first[edge] + np.arange(len(edge)) - before
            slope = (high[edge, 0] - low[edge, 0]) / (high[edge, 1] - low[edge, 1])
            x = low[edge, 0] + (row + 0.5 - low[edge, 1]) * slope
            column = np.clip(np.ceil(x - 0.5) - self.left, 0, self.width).astype(int)
            np.add.at(changes_hw, (row - self.top, column), sign[edge])
        return np.cumsum(changes_hw, axis=1)[:, :-1]


def _trimmed(mask_hw: np.ndarray, top: int, left: int) -> Iterator[Window]:
    """Yield a mask without empty margins; nothing for an empty one."""
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if len(rows):
        window = mask_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        yield window, (top + int(rows[0]), left + int(columns[0]))
