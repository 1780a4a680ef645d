"""Adaptive training sample selection (Zhang et al. 2020, arXiv:1912.02424): each cell sets its own IoU threshold.

Shape suffixes: N cells, A anchors, L levels, S shapes of a level's anchors, K candidates of a cell, P places, W, Y, X
places along a window, its rows and columns, 2 = x, y, 4 = x1, y1, x2, y2 in pixels.
"""

import math

import torch
from torch import Tensor

from cellseg.model.anchors import AnchorGrid, PlaceTable

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
    index_NK, is_there_NK = _candidates(boxes_N4, grid.places, places)
    anchors_NK4 = grid.boxes_A4[index_NK]
    iou_NK = torch.where(is_there_NK, _iou(boxes_N4[:, None], anchors_NK4), 0)
    count_N1 = is_there_NK.sum(dim=1, keepdim=True)
    mean_N1 = iou_NK.sum(dim=1, keepdim=True) / count_N1
    squares_NK = torch.where(is_there_NK, (iou_NK - mean_N1).square(), 0)
    threshold_N1 = mean_N1 + (squares_NK.sum(dim=1, keepdim=True) / (count_N1 - 1)).sqrt()
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


def _candidates(boxes_N4: Tensor, table: PlaceTable, places: int) -> tuple[Tensor, Tensor]:
    """The anchors at the ``places`` nearest to each cell's centre on every level: (N, K) int64, and which of them there
    are (N, K): levels have different numbers of anchors at a place, and small ones fewer places.

    They lie in a window around the nearest place, shifted to stay inside the grid. All levels at once: a GPU would
    spend most of the time on starting small kernels.
    """
    reach = math.ceil(math.sqrt(places))
    offset_W = torch.arange(2 * reach + 1, device=boxes_N4.device)
    centre_N12 = (boxes_N4[:, None, :2] + boxes_N4[:, None, 2:]) / 2
    nearest_NL2 = (centre_N12 / table.stride_L2).round().to(torch.int64)
    begin_NL2 = torch.minimum(nearest_NL2 - reach, table.length_L2 - len(offset_W)).clamp(min=0)
    index_NL2W = begin_NL2[..., None] + offset_W
    distance_NL2W = (index_NL2W * table.stride_L2[..., None] - centre_N12[..., None]).square()
    distance_NL2W = torch.where(index_NL2W < table.length_L2[..., None], distance_NL2W, math.inf)
    distance_NLYX = distance_NL2W[:, :, 1, :, None] + distance_NL2W[:, :, 0, None, :]
    place_NLYX = index_NL2W[:, :, 1, :, None] * table.length_L2[:, 0, None, None] + index_NL2W[:, :, 0, None, :]
    nearest = distance_NLYX.flatten(2).topk(places, dim=2, largest=False)
    place_NLP1 = place_NLYX.flatten(2).gather(2, nearest.indices)[..., None]
    shape_S = torch.arange(table.most_shapes, device=boxes_N4.device)
    shapes_L11 = table.shapes_L[:, None, None]
    anchor_NLPS = table.first_L[:, None, None] + place_NLP1 * shapes_L11 + shape_S
    is_there_NLPS = (nearest.values < math.inf)[..., None] & (shape_S < shapes_L11)
    return torch.where(is_there_NLPS, anchor_NLPS, 0).flatten(1), is_there_NLPS.flatten(1)


def _iou(boxes_N14: Tensor, anchors_NK4: Tensor) -> Tensor:
    """(N, K): IoU of each cell with its own candidates."""
    shared_NK2 = (
        torch.minimum(boxes_N14[..., 2:], anchors_NK4[..., 2:])
        - torch.maximum(boxes_N14[..., :2], anchors_NK4[..., :2])
    ).clamp(min=0)
    shared_NK = shared_NK2.prod(dim=2)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(dim=2) for boxes in (boxes_N14, anchors_NK4)]
    return shared_NK / (areas[0] + areas[1] - shared_NK)
