import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from cellseg.model import matching
from cellseg.model.matching import CellRPN, match_anchors


def boxes(count: int, seed: int, side: float = 200, smallest: float = 4, largest: float = 40) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner_N2 = torch.rand(count, 2, generator=generator) * side
    size_N2 = smallest + torch.rand(count, 2, generator=generator) * (largest - smallest)
    return torch.cat([corner_N2, corner_N2 + size_N2], dim=1)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("pairs_at_once", [1, 100, 1000, 1 << 20])
@pytest.mark.parametrize(("num_cells", "num_anchors"), [(1, 1), (1, 500), (30, 1), (30, 777)])
def test_chunks_match_as_the_whole_table_does(monkeypatch, low_quality, pairs_at_once, num_cells, num_anchors):
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", pairs_at_once)
    matcher = Matcher(0.5, 0.2, allow_low_quality_matches=low_quality)
    cells_N4, anchors_A4 = boxes(num_cells, 0), boxes(num_anchors, 1)
    expected_A = matcher(box_iou(cells_N4, anchors_A4))
    assert torch.equal(match_anchors(cells_N4, anchors_A4, matcher), expected_A)


def test_anchors_that_overlap_a_cell_alike_are_all_its_own_in_whatever_chunk(monkeypatch):
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    cell_14 = torch.tensor([[10.0, 10.0, 20.0, 20.0]])
    far, near = [100.0, 100.0, 110.0, 110.0], [5.0, 10.0, 15.0, 20.0]  # IoU 1/3 with the cell: the most there is
    anchors_A4 = torch.tensor([near, far, far, near, far, near])
    for pairs_at_once in range(1, 8):
        monkeypatch.setattr(matching, "PAIRS_AT_ONCE", pairs_at_once)
        assert match_anchors(cell_14, anchors_A4, matcher).tolist() == [0, -1, -1, 0, -1, 0]


def rpn(cls: type[RegionProposalNetwork]) -> RegionProposalNetwork:
    limits = dict.fromkeys(("training", "testing"), 10)
    return cls(None, None, 0.7, 0.3, 256, 0.5, limits, limits, 0.7)


@pytest.mark.parametrize("counts", [[20], [0], [20, 0, 1]])
def test_targets_of_anchors_are_those_of_torchvision(monkeypatch, counts):
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 1000)
    targets = [{"boxes": boxes(count, seed)} for seed, count in enumerate(counts)]
    anchors = [boxes(3000, 100 + seed) for seed in range(len(counts))]
    ours, theirs = (rpn(cls).assign_targets_to_anchors(anchors, targets) for cls in (CellRPN, RegionProposalNetwork))
    for own, expected in zip(ours, theirs, strict=True):
        assert [value.dtype for value in own] == [value.dtype for value in expected]
        assert all(torch.equal(*pair) for pair in zip(own, expected, strict=True))
    values = torch.cat(ours[0]).unique().tolist()
    assert values == ([0] if counts == [0] else [-1, 0, 1])


def test_a_thousand_cells_and_a_quarter_of_a_million_anchors_stay_small():
    sizes = []
    original = matching.box_iou

    def watched(boxes_N4: Tensor, anchors_a4: Tensor) -> Tensor:
        sizes.append(len(boxes_N4) * len(anchors_a4))
        return original(boxes_N4, anchors_a4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "box_iou", watched)
        matched_A = match_anchors(boxes(1000, 0, 2000), boxes(250_000, 1, 2000), Matcher(0.7, 0.3, True))
    assert max(sizes) <= matching.PAIRS_AT_ONCE
    assert sum(sizes) < 1.2 * 1000 * 250_000
    assert len(matched_A[matched_A >= 0].unique()) > 600
