"""Adaptive training sample selection (Zhang et al. 2020, arXiv:1912.02424): each cell sets its own IoU threshold.

Shape suffixes: N cells, A anchors, S shapes of a level's anchors, K candidates of a cell, Y, X rows and columns of a
window, 4 = x1, y1, x2, y2 in pixels.
"""

import math

import torch
from torch import Tensor

from cellseg.model.anchors import AnchorGrid, AnchorLevel

BACKGROUND = -1


def assign_by_statistics(boxes_N4: Tensor, grid: AnchorGrid, places: int, *, best_anchor: bool) -> Tensor:
    """Match anchors to cells.

    On every level, the anchors at the ``places`` nearest to a cell's centre are its candidates. A candidate
    matches if its IoU reaches the mean plus the standard deviation of all candidates' IoUs and its centre lies in the
    box. An anchor that matches several cells takes the one it overlaps most.

    Each cell is compared with its candidates only: there is no table of cells and anchors.

    Args:
        boxes_N4: at least one, float32.
        places: at least 1; a smaller level uses all of its places.
        best_anchor: the candidates with the highest IoU always match.

    Returns:
        (A,) int64: a cell in 0..N-1, or -1, background.
    """
    index_NK = torch.cat([_nearest(boxes_N4, level, places) for level in grid.levels], dim=1)
    anchors_NK4 = grid.boxes_A4[index_NK]
    iou_NK = _iou(boxes_N4[:, None], anchors_NK4)
    threshold_N1 = iou_NK.mean(dim=1, keepdim=True) + iou_NK.std(dim=1, keepdim=True)
    centre_NK2 = (anchors_NK4[..., :2] + anchors_NK4[..., 2:]) / 2
    is_inside_NK = ((centre_NK2 > boxes_N4[:, None, :2]) & (centre_NK2 < boxes_N4[:, None, 2:])).all(dim=2)
    is_its_NK = (iou_NK >= threshold_N1) & is_inside_NK
    if best_anchor:
        is_its_NK |= iou_NK == iou_NK.amax(dim=1, keepdim=True)
    is_its_NK &= iou_NK > 0
    # Each anchor's highest IoU among the cells it matches, and the first cell with that IoU.
    wanted_NK = torch.where(is_its_NK, iou_NK, 0)
    num_anchors, num_cells = len(grid.boxes_A4), len(boxes_N4)
    flat = index_NK.flatten()
    highest_A = wanted_NK.new_zeros(num_anchors).scatter_reduce(0, flat, wanted_NK.flatten(), "amax")
    wins_NK = is_its_NK & (wanted_NK == highest_A[index_NK])
    cell_N1 = torch.arange(num_cells, device=boxes_N4.device)[:, None]
    winner_NK = torch.where(wins_NK, cell_N1, num_cells)
    matched_A = torch.full((num_anchors,), num_cells, device=boxes_N4.device)
    matched_A = matched_A.scatter_reduce(0, flat, winner_NK.flatten(), "amin")
    return torch.where(matched_A < num_cells, matched_A, BACKGROUND)


def _nearest(boxes_N4: Tensor, level: AnchorLevel, places: int) -> Tensor:
    """(N, places * S) int64: the anchors of a level at the places nearest to each cell's centre.

    They lie in a window around the nearest place, shifted to stay inside the grid.
    """
    shapes, height, width = level.shape
    reach = math.ceil(math.sqrt(places))
    centre_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    rows_NY, dy_NY = _window(centre_N2[:, 1], level.y_SH2, level.stride[0], reach, height)
    columns_NX, dx_NX = _window(centre_N2[:, 0], level.x_SW2, level.stride[1], reach, width)
    distance_NYX = dy_NY.square()[:, :, None] + dx_NX.square()[:, None]
    place_NYX = rows_NY[:, :, None] * width + columns_NX[:, None]
    nearest = distance_NYX.flatten(1).topk(min(places, distance_NYX[0].numel()), dim=1, largest=False).indices
    place_NK = place_NYX.flatten(1).gather(1, nearest)
    shape_S = torch.arange(shapes, device=boxes_N4.device)
    return (level.first + place_NK[:, :, None] * shapes + shape_S).flatten(1)


def _window(centre_N: Tensor, edges_SL2: Tensor, stride: int, reach: int, length: int) -> tuple[Tensor, Tensor]:
    """Rows or columns (N, Y) int64 around each centre, and their distances from it in px. The same for all shapes."""
    first_place = edges_SL2[0, 0].mean()
    nearest_N = ((centre_N - first_place) / stride).round().to(torch.int64)
    side = min(2 * reach + 1, length)
    begin_N = (nearest_N - reach).clamp(0, length - side)
    index_NY = begin_N[:, None] + torch.arange(side, device=centre_N.device)
    return index_NY, index_NY * stride + first_place - centre_N[:, None]


def _iou(boxes_N14: Tensor, anchors_NK4: Tensor) -> Tensor:
    """(N, K): IoU of each cell with its own candidates."""
    shared_NK2 = (
        torch.minimum(boxes_N14[..., 2:], anchors_NK4[..., 2:])
        - torch.maximum(boxes_N14[..., :2], anchors_NK4[..., :2])
    ).clamp(min=0)
    shared_NK = shared_NK2.prod(dim=2)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(dim=2) for boxes in (boxes_N14, anchors_NK4)]
    return shared_NK / (areas[0] + areas[1] - shared_NK)
