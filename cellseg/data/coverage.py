"""How well anchors overlap the cells of a data set, before anything is trained.

Shape suffixes: N cells, 4 = x1, y1, x2, y2, 2 = vertical and horizontal (or height and width), in pixels of the
network's input.
"""

from collections.abc import Sequence

import numpy as np

from cellseg.config import parse_anchor_range, parse_numbers, sizes_per_level

COVERAGE_IOUS = (0.5, 0.7)
"""IoU from which a cell counts as covered: the one from which a proposal stands for a cell in the heads, and the one
from which an anchor does in the RPN with ``rpn_assignment: iou``."""
FINEST_STRIDE = 4
"""Pixels between the anchors of the finest FPN level; each further level doubles it."""
PADDING = 32
"""The network pads both sides of an image to multiples of this, in pixels."""


def anchor_coverage(
    boxes: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]] | np.ndarray,
    anchors: str,
    ratios: str = "0.5,1,2",
) -> tuple[float, ...]:
    """Compute the share of cells that have an anchor of at least the IoU, for each of ``COVERAGE_IOUS``.

    Args:
        boxes: for each image the (N, 4) boxes x1, y1, x2, y2 with exclusive right and bottom edge, in pixels of the
            network's input.
        sizes: for each image (height, width) of the network's input in pixels, before padding.
        anchors: sizes of the anchors as ``model.anchors`` takes them, not ``auto``.
        ratios: height / width of the anchors as ``model.anchor_ratios`` takes them.

    Returns:
        Shares in [0, 1]; none where there are no cells.
    """
    best_N = best_anchor_ious(boxes, sizes, anchors, ratios)
    return tuple(float(np.mean(best_N >= iou)) for iou in COVERAGE_IOUS) if len(best_N) else ()


def best_anchor_ious(
    boxes: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]] | np.ndarray, anchors: str, ratios: str
) -> np.ndarray:
    """Compute the largest IoU that each cell has with any anchor of its image, (cells,) float64.

    Arguments are those of :func:`anchor_coverage`; the anchors are those of an image that is a batch by itself. The
    result is exact without looking at every anchor: anchors of one shape stand at the places of a regular grid and are
    symmetric around them, so the one whose place is nearest to the cell's centre, along each axis by itself, overlaps
    it most.
    """
    counts = [len(boxes_N4) for boxes_N4 in boxes]
    boxes_N4 = np.concatenate([np.zeros((0, 4)), *boxes])
    padded_N2 = np.repeat(-(-np.asarray(sizes, np.int64).reshape(-1, 2) // PADDING) * PADDING, counts, axis=0)
    low_N2, high_N2 = boxes_N4[:, 1::-1], boxes_N4[:, :1:-1]
    area_N = (high_N2 - low_N2).prod(axis=1)
    best_N = np.zeros(len(boxes_N4))
    for level, level_sizes in enumerate(sizes_per_level(parse_anchor_range(anchors))):
        places_N2 = -(-padded_N2 // (FINEST_STRIDE << level))
        stride_N2 = padded_N2 // places_N2  # the network's, also where the padded side is no multiple of 64
        index_N2 = np.clip(np.rint((low_N2 + high_N2) / 2 / stride_N2), 0, places_N2 - 1)
        centre_N2 = index_N2 * stride_N2
        for half_2 in _half_sides(level_sizes, parse_numbers(ratios, "ratios")):
            overlap_N2 = np.minimum(high_N2, centre_N2 + half_2) - np.maximum(low_N2, centre_N2 - half_2)
            common_N = overlap_N2.clip(min=0).prod(axis=1)
            np.maximum(best_N, common_N / (area_N + (2 * half_2).prod() - common_N), out=best_N)
    return best_N


def neighbours_of(anchors: str) -> tuple[str, ...]:
    """Name the ranges to compare ``anchors`` with: half and twice its sizes, and the same with two sizes more, which
    moves its sizes to finer grids. No size below 2 px."""
    sizes = parse_anchor_range(anchors)
    pairs = [(sizes[0] // 2, sizes[-1] // 2), (sizes[0] * 2, sizes[-1] * 2), (sizes[0], sizes[-1] * 4)]
    return tuple(f"{smallest}-{largest}" for smallest, largest in pairs if smallest >= 2)


def _half_sides(sizes: Sequence[int], ratios: Sequence[float]) -> list[np.ndarray]:
    """Half the (height, width) of each anchor: whole pixels, as torchvision rounds them."""
    heights_and_widths = [(size * ratio**0.5, size * ratio**-0.5) for size in sizes for ratio in ratios]
    return [np.rint(np.array(sides) / 2) for sides in heights_and_widths]
