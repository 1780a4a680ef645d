"""Anchor matching by IoU, without a table of all cells and anchors and without waiting for a GPU.

Shape suffixes: N cells, A anchors, S shapes of a level's anchors, H, W its rows and columns, X all columns of all
shapes and levels, Y all rows, 4 = x1, y1, x2, y2 in pixels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from cellseg.model.anchors import AnchorGrid

PAIRS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Cells times anchors compared at a time, 4 bytes each: what a CPU's cache holds, and what keeps a GPU busy with
few kernels. An image with 1,000 cells and 250,000 anchors has 250 million."""
ROUNDING = 1e-6
"""Relative. Overlaps this close to a threshold or to each other count as equal."""


def match_anchors(boxes_N4: Tensor, grid: AnchorGrid, matcher: Matcher) -> Tensor:
    """``matcher(box_iou(boxes_N4, grid.boxes_A4))``, but for overlaps that differ by ``ROUNDING`` only.

    An anchor belongs to the cell it overlaps most if that IoU reaches the matcher's high threshold, or, where the
    matcher allows it, if no anchor overlaps some cell more (so that every cell has an anchor).

    The anchors of a shape differ only in position: an intersection is the product of a height, of cell and
    row, and a width, of cell and column. Divided by the sum of both areas, it is r = IoU / (1 + IoU), monotonic in the
    IoU. That table costs one multiplication per pair.

    Args:
        boxes_N4: at least one, float32.

    Returns:
        (A,) int64: a cell in 0..N-1, or ``BELOW_LOW_THRESHOLD`` or ``BETWEEN_THRESHOLDS`` of the matcher.
    """
    widths_NX, shares_NY = _overlaps(boxes_N4, grid)
    at_once = PAIRS_AT_ONCE["cuda" if boxes_N4.is_cuda else "cpu"]
    parts = list(_parts(grid, max(at_once // len(boxes_N4), 1)))
    num_anchors = len(grid.boxes_A4)
    best_A = boxes_N4.new_empty(num_anchors)
    nearest_A = torch.empty(num_anchors, dtype=torch.int64, device=boxes_N4.device)
    tops_CN = boxes_N4.new_empty(len(parts), len(boxes_N4))
    for top_N, (place, rows, columns) in zip(tops_CN, parts, strict=True):
        table_Na = _table(shares_NY, widths_NX, rows, columns)
        torch.max(table_Na, dim=0, out=(best_A[place], nearest_A[place]))
        torch.amax(table_Na, dim=1, out=top_N)
    iou_A = best_A / (1 - best_A)
    taken_A = iou_A >= matcher.high_threshold * (1 - ROUNDING)
    if matcher.allow_low_quality_matches:
        # As shares of each cell's best overlap. A cell that overlaps no anchor takes none.
        shares_NY /= tops_CN.amax(dim=0).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        for place, rows, columns in parts:
            torch.amax(_table(shares_NY, widths_NX, rows, columns), dim=0, out=best_A[place])
        taken_A |= best_A >= 1 - ROUNDING
    is_low_A = iou_A < matcher.low_threshold * (1 - ROUNDING)
    free_A = matcher.BETWEEN_THRESHOLDS + is_low_A.to(torch.int64)
    assert matcher.BELOW_LOW_THRESHOLD == matcher.BETWEEN_THRESHOLDS + 1
    return torch.where(taken_A, nearest_A, free_A)[grid.from_planes_A]


Part = tuple[slice, tuple[int, int, int], tuple[int, int, int]]
"""The places of anchors counted by level, shape, row and column, and how they are made: first of Y, shapes and rows,
and first of X, shapes and columns."""


def _parts(grid: AnchorGrid, limit: int) -> Iterator[Part]:
    """Split the anchors into parts of at most ``limit``, or one row: whole levels, or rows of a shape."""
    first_y = first_x = 0
    for level in grid.levels:
        shapes, height, width = level.shape
        if shapes * height * width <= limit:
            steps = [(0, shapes, 0, height)]
        else:
            some = min(max(limit // width, 1), height)
            steps = [(s, 1, row, min(some, height - row)) for s in range(shapes) for row in range(0, height, some)]
        for shape, count, row, rows in steps:
            begin = level.first + (shape * height + row) * width
            place = slice(begin, begin + count * rows * width)
            yield place, (first_y + shape * height + row, count, rows), (first_x + shape * width, count, width)
        first_y, first_x = first_y + shapes * height, first_x + shapes * width


def _table(shares_NY: Tensor, widths_NX: Tensor, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> Tensor:
    """(N, anchors of the part): r of each pair."""
    (y, shapes, height), (x, _, width) = rows, columns
    share_NSH = shares_NY[:, y : y + shapes * height].unflatten(1, (shapes, height))
    width_NSW = widths_NX[:, x : x + shapes * width].unflatten(1, (shapes, width))
    return (share_NSH[..., None] * width_NSW[:, :, None]).flatten(1)


def _overlaps(boxes_N4: Tensor, grid: AnchorGrid) -> tuple[Tensor, Tensor]:
    """Overlaps of each cell with each column, in pixels, and with each row, divided by both areas: (N, X), (N, Y)."""
    x_X2, y_Y2, area_Y = grid.edges
    x1_N, y1_N, x2_N, y2_N = boxes_N4[:, :, None].unbind(dim=1)
    widths_NX = (torch.minimum(x2_N, x_X2[:, 1]) - torch.maximum(x1_N, x_X2[:, 0])).clamp_(min=0)
    heights_NY = (torch.minimum(y2_N, y_Y2[:, 1]) - torch.maximum(y1_N, y_Y2[:, 0])).clamp_(min=0)
    sides_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    return widths_NX, heights_NY.div_(sides_N2.prod(dim=1, keepdim=True) + area_Y)
