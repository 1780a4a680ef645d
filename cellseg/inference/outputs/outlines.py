"""Outlines of masks along the edges of their pixels: exact, with holes and separate parts.

Coordinates are x, y of the corners of pixels: the image's first pixel reaches from (0, 0) to (1, 1).
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellseg.data.rle import decode_window

Ring = list[tuple[int, int]]
"""Corners x, y of a closed line, the first one not repeated; no three in a row lie on one line."""


@dataclass(frozen=True)
class Polygon:
    """A connected part of a mask: pixels that share edges."""

    outer: Ring
    """Runs clockwise as one sees it, with y pointing down."""
    holes: list[Ring]
    """Run counter-clockwise."""

    @property
    def rings(self) -> list[Ring]:
        """The outer ring, then the holes."""
        return [self.outer, *self.holes]


def outline(rle: dict) -> list[Polygon]:
    """Trace the parts of a mask; none if it is empty.

    The polygons are valid by OGC's rules and cover exactly the mask's pixels: rings never cross, and touch at single
    corners at most.
    """
    top, left, mask_hw = decode_window(rle)
    parts_hw, count = ndimage.label(mask_hw)
    outers: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {part: [] for part in range(1, count + 1)}
    for part, ring in _rings(parts_hw):
        moved = [(x + left, y + top) for x, y in ring]
        if _doubled_area(ring) > 0:
            outers[part] = moved
        else:
            holes[part].append(moved)
    return [Polygon(outers[part], holes[part]) for part in sorted(outers)]


def _rings(parts_hw: np.ndarray) -> list[tuple[int, Ring]]:
    """Trace the borders of all parts, each ring with the number of its part. The part lies to the right of each step.

    Where a border meets itself in a corner, it follows its own pixel, and the ring is cut there into two.
    """
    framed = np.pad(parts_hw, 1)
    inside = framed > 0
    # Steps along the edges of pixels, from the corner (x, y): to the right along the top of a pixel, and so on.
    moves = (
        ((1, 0), inside[1:, 1:] & ~inside[:-1, 1:], (1, 1)),  # the pixel below its top edge
        ((-1, 0), ~inside[1:, :-1] & inside[:-1, :-1], (0, 0)),  # the pixel above its bottom edge
        ((0, 1), inside[1:, :-1] & ~inside[1:, 1:], (1, 0)),  # the pixel left of its right edge
        ((0, -1), ~inside[:-1, :-1] & inside[:-1, 1:], (0, 1)),  # the pixel right of its left edge
    )
    steps: dict[tuple[int, int], list[tuple[tuple[int, int], int]]] = {}
    for move, there, (row, column) in moves:
        ys, xs = np.nonzero(there)
        parts = framed[ys + row, xs + column]
        for x, y, part in zip(xs.tolist(), ys.tolist(), parts.tolist(), strict=True):
            steps.setdefault((x, y), []).append((move, part))
    found = []
    while steps:
        corner = next(iter(steps))
        move, part = steps[corner].pop()
        ring = _follow(steps, corner, move)
        found += [(part, simple) for simple in _cut_at_repeats(ring)]
    return found


def _follow(steps: dict, start: tuple[int, int], move: tuple[int, int]) -> Ring:
    """Walk from ``start`` until it is reached again, using up the steps; every corner on the way."""
    ring, corner = [start], (start[0] + move[0], start[1] + move[1])
    if not steps[start]:
        del steps[start]
    while corner != start:
        ways = steps[corner]
        # Two ways lead on where two pixels touch in this corner: to the right, around the pixel it came along.
        wanted = (-move[1], move[0])
        chosen = next((index for index, way in enumerate(ways) if way[0] == wanted), 0)
        move, _ = ways.pop(chosen)
        if not ways:
            del steps[corner]
        ring.append(corner)
        corner = (corner[0] + move[0], corner[1] + move[1])
    return ring


def _cut_at_repeats(ring: Ring) -> list[Ring]:
    """Cut a ring wherever it meets itself, and leave out corners on straight lines."""
    simple: list[Ring] = []
    path: Ring = []
    place: dict[tuple[int, int], int] = {}
    for corner in ring:
        if corner in place:
            start = place[corner]
            simple.append(path[start:])
            for passed in path[start:]:
                del place[passed]
            del path[start:]
        place[corner] = len(path)
        path.append(corner)
    return [_without_straight(part) for part in (*simple, path)]


def _without_straight(ring: Ring) -> Ring:
    kept = []
    for index, (x, y) in enumerate(ring):
        (x0, y0), (x1, y1) = ring[index - 1], ring[(index + 1) % len(ring)]
        if (x - x0) * (y1 - y) != (y - y0) * (x1 - x):
            kept.append((x, y))
    return kept


def _doubled_area(ring: Ring) -> int:
    """Twice the signed area: positive for a ring that runs clockwise with y pointing down."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True))
