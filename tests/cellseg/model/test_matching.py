import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from benchmarks.operators import Operators
from cellseg.model import matching
from cellseg.model.anchors import AnchorGrid, CellAnchors
from cellseg.model.matching import match_anchors
from cellseg.model.rpn import CellRPN

STRIDES = (4, 8, 16, 32, 64)
SIZES = (8, 16, 32, 64, 128)


def grid_of(height: int, width: int, sizes=SIZES, ratios=(0.5, 1.0, 2.0)) -> AnchorGrid:
    maps = [torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in STRIDES]
    return CellAnchors(sizes, ratios).grid(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)


def boxes(count: int, seed: int, side: float = 200, smallest: float = 4, largest: float = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner_N2 = torch.rand(count, 2, generator=generator) * (side - largest)
    size_N2 = smallest + torch.rand(count, 2, generator=generator) * (largest - smallest)
    return torch.cat([corner_N2, corner_N2 + size_N2], dim=1)


@pytest.mark.parametrize("whole_pixels", [False, True])
@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("pairs_at_once", [1, 1000, 20_000, 1 << 25])
@pytest.mark.parametrize(
    ("num_cells", "sizes", "ratios"),
    [(1, SIZES, (1.0,)), (30, SIZES, (0.5, 1.0, 2.0)), (30, (4, *SIZES), (0.5, 1.0, 2.0))],
)
def test_parts_match_as_the_whole_table_does(
    monkeypatch, whole_pixels, low_quality, pairs_at_once, num_cells, sizes, ratios
):
    monkeypatch.setitem(matching.PAIRS_AT_ONCE, "cpu", pairs_at_once)
    matcher = Matcher(0.5, 0.2, allow_low_quality_matches=low_quality)
    grid, cells_N4 = grid_of(160, 224, sizes, ratios), boxes(num_cells, 0, 160)
    if whole_pixels:  # many overlaps are the same
        cells_N4 = cells_N4.round()
    expected_A = matcher(box_iou(cells_N4, grid.boxes_A4))
    assert (expected_A >= 0).any() or not low_quality
    assert torch.equal(match_anchors(cells_N4, grid, matcher), expected_A)


def test_a_cell_far_from_all_anchors_takes_none():
    """torchvision takes every anchor for its best: they overlap it alike."""
    far_14 = torch.tensor([[5000.0, 5000, 5010, 5010]])
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    assert set(match_anchors(far_14, grid_of(64, 64), matcher).tolist()) == {-1}


def rpn(cls: type[RegionProposalNetwork]) -> RegionProposalNetwork:
    limits = dict.fromkeys(("training", "testing"), 10)
    return cls(None, None, 0.7, 0.3, 256, 0.5, limits, limits, 0.7)


@pytest.mark.parametrize("count", [20, 1, 0])
def test_what_anchors_are_told_is_torchvisions(count):
    cells_N4, grid = boxes(count, count), grid_of(200, 200)
    labels_A, matched_A = rpn(CellRPN).labels(cells_N4, grid)
    targets = [{"boxes": cells_N4}]
    (expected_A,), (boxes_A4,) = rpn(RegionProposalNetwork).assign_targets_to_anchors([grid.boxes_A4], targets)
    assert labels_A.dtype == torch.float32
    assert torch.equal(labels_A, expected_A)
    assert labels_A.unique().tolist() == ([-1, 0, 1] if count else [0])
    positive = labels_A == 1
    assert torch.equal(cells_N4[matched_A[positive]], boxes_A4[positive])


def test_many_cells_and_anchors_take_few_kernels_no_wait_and_little_memory(monkeypatch):
    """An image of 800 x 1088 px with 500 cells took 3,652 kernels and 209 waits when pairs were compared one by one."""
    grid, cells_N4 = grid_of(800, 1088, (32, 64, 128, 256, 512)), boxes(500, 0, 800, 12, 40)
    monkeypatch.setitem(matching.PAIRS_AT_ONCE, "cpu", matching.PAIRS_AT_ONCE["cuda"])
    sizes = []
    original = matching._table

    def watched(*arguments) -> Tensor:
        table = original(*arguments)
        sizes.append(table.numel())
        return table

    monkeypatch.setattr(matching, "_table", watched)
    with Operators() as counted:
        matched_A = match_anchors(cells_N4, grid, Matcher(0.7, 0.3, True))
    assert max(sizes) <= matching.PAIRS_AT_ONCE["cuda"]
    assert sum(sizes) == 2 * 500 * len(grid.boxes_A4)
    assert counted.waits == 0
    assert counted.launches <= 60
    assert len(matched_A[matched_A >= 0].unique()) > 300
