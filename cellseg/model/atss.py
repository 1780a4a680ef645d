"""Adaptive training sample selection (Zhang et al. 2020, arXiv:1912.02424): each cell sets its own IoU threshold.

Shape suffixes: N cells, A anchors, L levels, S shapes of a level's anchors, K candidates of a cell, P places, W places
along a window, Y, X its rows and columns, 2 = x, y, 4 = x1, y1, x2, y2 in pixels, 7 = a row of the table of anchors.
"""

import math

import torch
from torch import Tensor

from cellseg.model.anchors import AnchorGrid, CandidateTable

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
    table = grid.candidates(places)
    index_NK = _candidates(boxes_N4, table)
    anchors_NK7 = table.anchors_AC[index_NK]
    iou_NK = _iou(boxes_N4[:, None], anchors_NK7)
    mean_N1 = iou_NK.mean(dim=1, keepdim=True)
    # torch.std is one kernel instead of three, but ten times slower on a CPU.
    deviation_N1 = torch.linalg.vector_norm(iou_NK - mean_N1, dim=1, keepdim=True) / math.sqrt(iou_NK.shape[1] - 1)
    centre_NK2 = anchors_NK7[..., 5:]
    is_inside_NK = ((centre_NK2 > boxes_N4[:, None, :2]) & (centre_NK2 < boxes_N4[:, None, 2:])).all(dim=2)
    is_its_NK = (iou_NK >= mean_N1 + deviation_N1) & is_inside_NK
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


def _candidates(boxes_N4: Tensor, table: CandidateTable) -> Tensor:
    """(N, K) int64: the anchors at the places nearest to each cell's centre on every level.

    They lie in a window around the nearest place, shifted to stay inside the grid. All levels at once, with whatever
    does not depend on the cells in ``table``: a GPU would spend most of the time on starting small kernels.
    """
    centre_N12 = boxes_N4.unflatten(1, (1, 2, 2)).mean(dim=2)
    middle_NL2 = (centre_N12 / table.stride_L2).round().clamp(table.least_L2, table.most_L2).to(torch.int64)
    place_NL2W = middle_NL2[..., None] + table.window_W
    offset_NL2W = place_NL2W * table.stride_L2[..., None] - centre_N12[..., None]
    x_NLW, y_NLW = offset_NL2W.square().unbind(dim=2)
    distance_NLYX = x_NLW[:, :, None] + y_NLW[..., None] + table.outside_LWW
    place_NLYX = torch.addcmul(place_NL2W[:, :, 0, None, :], place_NL2W[:, :, 1, :, None], table.columns_L11)
    nearest_NLP = distance_NLYX.flatten(2).topk(table.places, dim=2, largest=False).indices
    place_NLP1 = place_NLYX.flatten(2).gather(2, nearest_NLP)[..., None]
    anchor_NK = torch.addcmul(table.first_L1S, place_NLP1, table.shapes_L11).flatten(1)
    return anchor_NK if table.kept_K is None else anchor_NK[:, table.kept_K]


def _iou(boxes_N14: Tensor, anchors_NK7: Tensor) -> Tensor:
    """(N, K): IoU of each cell with its own candidates."""
    shared_NK2 = (
        torch.minimum(boxes_N14[..., 2:], anchors_NK7[..., 2:4])
        - torch.maximum(boxes_N14[..., :2], anchors_NK7[..., :2])
    ).clamp(min=0)
    shared_NK = shared_NK2.prod(dim=2)
    area_N1 = (boxes_N14[..., 2:] - boxes_N14[..., :2]).prod(dim=2)
    return shared_NK / (area_N1 + anchors_NK7[..., 4] - shared_NK)
