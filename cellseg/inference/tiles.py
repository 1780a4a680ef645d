"""Prediction of large images in tiles: where the tiles lie, and how their detections become those of the image.

Neighbouring tiles overlap, so that a cell smaller than the overlap is whole in one of them. What a tile's border cuts
is left to the tile that shows it whole, as in StarDist's prediction of big images (Weigert et al. 2020,
arXiv:1908.03636). Cells that no tile shows whole are joined from their parts: in the overlap both tiles show the same
pixels, so two detections are one cell if their masks agree *there*. Cells that touch have disjoint masks and stay two,
however much their boxes overlap; SAHI's merging by overlap over the smaller box (Akyon et al. 2022, arXiv:2202.06934)
would make them one.

Shape suffixes: N, A, B detections, P pairs of them, 4 = x1, y1, x2, y2 in pixels with exclusive right and bottom edge.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from pycocotools import mask as coco_mask
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cellseg.data.detections import Detections
from cellseg.data.rle import encode_window
from cellseg.data.softmask import SoftMask

AGREEMENT = 0.5
"""Masks agree if they overlap by more than this IoU: more than one match is then impossible between disjoint masks."""
CUT_MARGIN = 4
"""A box that ends within this many pixels of its tile's border may be cut by it: the stride of the finest features."""
CUT_SHARE = 0.1
"""So may one that ends within this share of its own side, the accuracy of predicted boxes. A box that is whole after
all loses nothing."""

Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels with exclusive right and bottom edge."""


@dataclass(frozen=True, eq=False)
class TileDetections:
    """The detections of one tile."""

    window: Window
    """The part of the image that the tile shows, in pixels."""
    found: Detections
    """The N cells, in pixels of the image and with masks of its size."""


def tile_windows(height: int, width: int, side: int | None, overlap: int) -> list[Window]:
    """List tiles that cover an image, row by row, all of one size and evenly spread.

    Args:
        height, width: size of the image in pixels, at least 1.
        side: of a tile, in pixels. None: the whole image is one tile. A tile is no larger than the image.
        overlap: pixels that neighbours share at least; smaller than ``side``.
    """
    if side is None:
        return [(0, 0, width, height)]
    assert overlap < side, "InferenceConfig sees to it"
    return [
        (left, top, left + min(side, width), top + min(side, height))
        for top in _starts(height, side, overlap)
        for left in _starts(width, side, overlap)
    ]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """List where tiles begin along an axis. As all are rounded down, no step exceeds ``side - overlap``."""
    num_steps = math.ceil((length - side) / (side - overlap))
    if num_steps <= 0:
        return [0]
    return [step * (length - side) // num_steps for step in range(num_steps + 1)]


def merge_tiles(tiles: Sequence[TileDetections]) -> Detections:
    """Merge the detections of an image's tiles into those of the image: each cell once, best first.

    - A cell found whole in several tiles keeps its best-scored detection.
    - A cell cut in a tile is left to one that shows all of that part and what lies around it. If that one finds nothing
      there, as a prediction of the whole image might, there is nothing.
    - A cell that is cut in every tile, being larger than the overlap, is joined of its parts: the union of their masks
      and boxes, with the best of their scores.

    Detections of one tile are never compared with each other: the network has done that. Classes do not affect each
    other. A single tile is returned as it is.

    Args:
        tiles: of one image, at least one.
    """
    if len(tiles) == 1:
        return tiles[0].found
    found = concatenate([tile.found for tile in tiles])
    cut_N = np.concatenate([near_inner_edge(tile.found.boxes_N4, tile.window, found.size) for tile in tiles])
    shown_N = np.any([_shown_with_room(found.boxes_N4, tile.window, found.size) for tile in tiles], axis=0)
    matches_P2 = _matches(tiles, found, cut_N)
    partners = coo_array((np.ones(len(matches_P2), bool), matches_P2.T), shape=(len(found),) * 2)
    partners = (partners + partners.T).tocsr()
    _, cell_N = connected_components(partners, directed=False)

    dropped_N = cut_N & (shown_N | np.isin(cell_N, cell_N[~cut_N]))
    # Whole detections exclude only those they match themselves: a chain of matches may lead to another cell.
    for index in np.argsort(-found.scores_N, kind="stable"):
        if not (cut_N[index] or dropped_N[index]):
            rivals = partners.indices[partners.indptr[index] : partners.indptr[index + 1]]
            dropped_N[rivals[~cut_N[rivals]]] = True
    parts_N = cut_N & ~dropped_N
    joined = [_join(found.select(np.flatnonzero(parts_N & (cell_N == cell)))) for cell in np.unique(cell_N[parts_N])]
    merged = concatenate([found.select(np.flatnonzero(~cut_N & ~dropped_N)), *joined])
    return merged.select(np.argsort(-merged.scores_N, kind="stable"))


def near_inner_edge(boxes_N4: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Find boxes that end near a border of ``window`` inside the image (``CUT_MARGIN``, ``CUT_SHARE``); (N,) bool.

    Args:
        boxes_N4: (N, 4) in pixels of the image.
        size: (height, width) of the image.
    """
    height, width = size
    left, top, right, bottom = window
    inner_4 = np.array([left > 0, top > 0, right < width, bottom < height])
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    margin_N4 = np.tile(np.maximum(CUT_SHARE * sides_N2, CUT_MARGIN), 2)
    return ((np.abs(boxes_N4 - np.array(window)) <= margin_N4) & inner_4).any(axis=1)


def _shown_with_room(boxes_N4: np.ndarray, window: Window, size: tuple[int, int]) -> np.ndarray:
    """Find boxes inside ``window`` that are not at its border, unless that is the image's; (N,) bool."""
    left, top, right, bottom = window
    x1, y1, x2, y2 = boxes_N4.T
    inside_N = (x1 >= left) & (y1 >= top) & (x2 <= right) & (y2 <= bottom)
    return inside_N & ~near_inner_edge(boxes_N4, window, size)


def concatenate(found: Sequence[Detections]) -> Detections:
    """Concatenate one or more sets of detections of one image."""
    return Detections(
        size=found[0].size,
        boxes_N4=np.concatenate([part.boxes_N4 for part in found]),
        scores_N=np.concatenate([part.scores_N for part in found]),
        labels_N=np.concatenate([part.labels_N for part in found]),
        rles=tuple(rle for part in found for rle in part.rles),
        soft=None
        if any(part.soft is None for part in found)
        else tuple(mask for part in found for mask in part.soft or ()),
    )


def _join(parts: Detections) -> Detections:
    """Join the parts of one cell, of which there is at least one."""
    if len(parts) == 1:
        return parts
    box_14 = np.concatenate([parts.boxes_N4[:, :2].min(axis=0), parts.boxes_N4[:, 2:].max(axis=0)])[None]
    rle = coco_mask.merge(list(parts.rles))
    soft = None if parts.soft is None else (SoftMask.union(parts.soft),)
    return Detections(parts.size, box_14, parts.scores_N.max(keepdims=True), parts.labels_N[:1], (rle,), soft)


def _matches(tiles: Sequence[TileDetections], found: Detections, cut_N: np.ndarray) -> np.ndarray:
    """Find detections of different tiles that are one cell: (P, 2) int64 pairs of indices into ``found``.

    Two match if each agrees best with the other, so that a poor detection cannot tie two good ones together.

    Args:
        found, cut_N: of all tiles in turn.
    """
    starts = np.cumsum([0, *(len(tile.found) for tile in tiles)])
    matches = [np.zeros((0, 2), np.int64)]
    for first, second in combinations(range(len(tiles)), 2):
        zone = _intersection(tiles[first].window, tiles[second].window)
        if zone is None:
            continue
        index_A, index_B = (starts[tile] + _reaching(tiles[tile].found.boxes_N4, zone) for tile in (first, second))
        if not (len(index_A) and len(index_B)):
            continue
        a, b = found.select(index_A), found.select(index_B)
        trusted_AB = _trusts(a.scores_N, cut_N[index_A], b.scores_N) & _trusts(b.scores_N, cut_N[index_B], a.scores_N).T
        iou_AB = _iou_within(zone, a, b) * trusted_AB
        best_A, best_B = iou_AB.argmax(axis=1), iou_AB.argmax(axis=0)
        mutual_A = best_B[best_A] == np.arange(len(a))
        agreeing = np.flatnonzero(mutual_A & (iou_AB.max(axis=1) > AGREEMENT))
        matches.append(np.stack([index_A[agreeing], index_B[best_A[agreeing]]], axis=1))
    return np.concatenate(matches)


def _trusts(scores_A: np.ndarray, cut_A: np.ndarray, scores_B: np.ndarray) -> np.ndarray:
    """Decide whether a's match may be b; (A, B) bool. A cut detection demands at least half of its own score: there are
    always poor detections over several cells, which must neither replace it nor become a part of its cell."""
    return ~cut_A[:, None] | (2 * scores_B >= scores_A[:, None])


def _intersection(one: Window, other: Window) -> Window | None:
    """Return the pixels that both windows show; None where there are none."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _reaching(boxes_N4: np.ndarray, zone: Window) -> np.ndarray:
    """Return the indices of the boxes that reach into ``zone``."""
    left, top, right, bottom = zone
    x1, y1, x2, y2 = boxes_N4.T
    return np.flatnonzero((x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top))


def _iou_within(zone: Window, a: Detections, b: Detections) -> np.ndarray:
    """Compute the IoU of the masks of two tiles within ``zone``, the part that both show; (A, B) float64 in [0, 1], 0
    between classes and for empty masks."""
    height, width = a.size
    left, top, right, bottom = zone
    zone_rle = encode_window(np.ones((bottom - top, right - left), bool), top, left, height, width)
    in_zone_A, in_zone_B = (_common_pixels(found.rles, [zone_rle])[:, 0] for found in (a, b))
    common_AB = _common_pixels(a.rles, b.rles) * (a.labels_N[:, None] == b.labels_N)
    union_AB = in_zone_A[:, None] + in_zone_B - common_AB
    # Pasting may set a pixel just outside of a tile, so what is common may exceed the zone by a few pixels.
    return (common_AB / union_AB.clip(min=1)).clip(max=1)


def _common_pixels(rles: Sequence[dict], others: Sequence[dict]) -> np.ndarray:
    """Count the pixels that each mask shares with each of ``others``; (masks, others) float64.

    pycocotools' IoU with a crowd is the share of the mask; its areas it refuses to tell for more than 255 at once.
    """
    area_N = np.array([coco_mask.area(rle) for rle in rles], np.float64)
    return coco_mask.iou(list(rles), list(others), [1] * len(others)) * area_N[:, None]
