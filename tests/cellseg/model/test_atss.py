import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from benchmarks.operators import Operators
from cellseg.model.anchors import AnchorGrid
from cellseg.model.atss import assign_by_statistics
from tests.cellseg.model.test_matching import SIZES, boxes, grid_of


def reference(boxes_N4: Tensor, grid: AnchorGrid, places: int, best_anchor: bool) -> Tensor:
    """The paper's algorithm, from a table of all distances and overlaps, cell by cell."""
    iou_NA = box_iou(boxes_N4, grid.boxes_A4)
    centre_A2 = (grid.boxes_A4[:, :2] + grid.boxes_A4[:, 2:]) / 2
    matched_A = torch.full((len(grid.boxes_A4),), -1)
    highest_A = torch.zeros(len(grid.boxes_A4))
    for cell, box_4 in enumerate(boxes_N4):
        distance_A = torch.dist(torch.zeros(1), torch.zeros(1)) + (centre_A2 - (box_4[:2] + box_4[2:]) / 2).norm(dim=1)
        candidates: list[int] = []
        for level in grid.levels:
            shapes, height, width = level.shape
            of_place = distance_A[level.first : level.first + shapes * height * width].reshape(-1, shapes).mean(dim=1)
            nearest = of_place.sort(stable=True).indices[:places]
            candidates += [level.first + int(p) * shapes + s for p in nearest for s in range(shapes)]
        ious = iou_NA[cell, candidates]
        threshold = ious.mean() + ious.std()
        for anchor, iou in zip(candidates, ious, strict=True):
            x, y = centre_A2[anchor]
            inside = box_4[0] < x < box_4[2] and box_4[1] < y < box_4[3]
            wanted = (iou >= threshold and inside) or (best_anchor and iou == ious.max())
            if wanted and iou > highest_A[anchor]:
                matched_A[anchor], highest_A[anchor] = cell, iou
    return matched_A


@pytest.mark.parametrize("best_anchor", [True, False])
@pytest.mark.parametrize(("places", "sizes"), [(1, SIZES), (4, SIZES), (9, SIZES), (9, (4, *SIZES)), (40, SIZES)])
def test_cells_take_the_anchors_of_the_paper(places, sizes, best_anchor):
    grid, cells_N4 = grid_of(160, 224, sizes, (0.5, 1.0, 2.0)), boxes(12, places, 160)
    matched_A = assign_by_statistics(cells_N4, grid, places, best_anchor=best_anchor)
    assert torch.equal(matched_A, reference(cells_N4, grid, places, best_anchor))
    assert (matched_A >= 0).any()


def test_small_cells_between_the_places_have_an_anchor_if_they_shall():
    grid = grid_of(64, 64)
    tiny_14 = torch.tensor([[32.5, 32.5, 35.5, 35.5]])  # no anchor of the finest level is centred in it
    assert (assign_by_statistics(tiny_14, grid, 9, best_anchor=True) == 0).any()
    assert not (assign_by_statistics(tiny_14, grid, 9, best_anchor=False) == 0).any()


def test_a_thousand_cells_need_no_table_and_no_wait():
    grid, cells_N4 = grid_of(1024, 1024), boxes(1000, 0, 1024)
    assign_by_statistics(cells_N4, grid, 9, best_anchor=True)  # what all images of a size share is made once
    with Operators() as counted:
        matched_A = assign_by_statistics(cells_N4, grid, 9, best_anchor=True)
    assert counted.waits == 0
    assert counted.launches <= 60
    assert len(matched_A.unique()) > 900
