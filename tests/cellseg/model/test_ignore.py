"""What is left of cells that a crop cuts away is no example of background, nor of a cell."""

import pytest
import torch

from cellseg.config import TrialConfig
from cellseg.model import ignore
from cellseg.model.build import build_model
from cellseg.model.ignore import without_ignored

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 40], [8, 8, 20, 20], [50, 50, 60, 60], [5, 5, 5, 5]])


def labels_of(labels, ignored, boxes=BOXES) -> list[float]:
    return without_ignored(torch.tensor(labels), boxes, torch.tensor(ignored).reshape(-1, 4)).tolist()


def test_background_under_an_ignored_box_says_nothing():
    sliver = [[0.0, 0, 10, 6]]  # covers 60 %, 15 %, nothing, nothing
    assert labels_of([0.0, 0, 0, 0, 0], sliver) == [-1, 0, 0, 0, 0]
    assert labels_of([0, 0, 0, 0, 0], [*sliver, [50.0, 50, 90, 90]]) == [-1, 0, 0, -1, 0]


def test_cells_stay_cells_and_nothing_stays_nothing():
    assert labels_of([3, -1, 0, 1, 0], [[0.0, 0, 100, 100]]) == [3, -1, -1, 1, 0]


@pytest.mark.parametrize("ignored", [None, torch.zeros(0, 4)])
def test_without_ignored_boxes_labels_are_as_they_were(ignored):
    labels = torch.tensor([0.0, 1, -1, 0, 0])
    assert torch.equal(without_ignored(labels, BOXES, ignored), labels)


def test_chunks_give_what_one_table_gives(monkeypatch):
    torch.manual_seed(0)
    corners = torch.rand(300, 2) * 90
    boxes, ignored = torch.cat([corners, corners + 8], dim=1), torch.tensor([[0.0, 0, 40, 30], [60, 5, 80, 90]])
    labels = torch.zeros(300)
    whole = without_ignored(labels, boxes, ignored)
    monkeypatch.setitem(ignore.PAIRS_AT_ONCE, "cpu", 14)
    assert torch.equal(without_ignored(labels, boxes, ignored), whole)
    assert 30 < (whole == -1).sum() < 270


@pytest.fixture
def sampled(tiny_config, monkeypatch):
    """``sampled(target)``: the anchors and the regions that a model learns from as background."""
    config: TrialConfig = tiny_config(model__roi_samples=512, model__rpn_candidates=400, model__rpn_proposals=400)
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, 2).train()

    def sample(target):
        seen = {}
        rpn_labels, roi_regions = model.rpn.labels, model.roi_heads.regions

        def of_anchors(boxes_N4, grid, ignored_J4):
            labels_A, matched_A = rpn_labels(boxes_N4, grid, ignored_J4)
            seen["anchors"] = grid.boxes_A4[labels_A == 0]
            return labels_A, matched_A

        def of_regions(proposals, targets):
            found = roi_regions(proposals, targets)
            seen["regions"], seen["classes"] = found[0].boxes_P4[found[0].labels_P == 0], found[0].labels_P
            return found

        monkeypatch.setattr(model.rpn, "labels", of_anchors)
        monkeypatch.setattr(model.roi_heads, "regions", of_regions)
        torch.manual_seed(0)
        losses = model([torch.rand(3, 96, 96)], [target])
        monkeypatch.undo()
        assert all(torch.isfinite(loss) for loss in losses.values())
        return seen

    return sample


def inside(boxes, region) -> int:
    """How many boxes lie in ``region`` with all of their area."""
    return int(((boxes[:, :2] >= region[:2]) & (boxes[:, 2:] <= region[2:])).all(dim=1).sum())


@pytest.mark.parametrize("cells", [0, 1])
def test_neither_rpn_nor_heads_learn_background_from_an_ignored_box(sampled, cells):
    target = {
        "boxes": torch.tensor([[60.0, 60, 80, 80]])[:cells],
        "labels": torch.ones(cells, dtype=torch.int64),
        "planes": torch.zeros(1, 96, 96, dtype=torch.int16),
        "plane": torch.zeros(cells, dtype=torch.int64),
        "number": torch.ones(cells, dtype=torch.int64),
    }
    region = torch.tensor([0.0, 0, 48, 96])
    plain = sampled(target)
    assert inside(plain["anchors"], region) > 10 and inside(plain["regions"], region) > 3
    spared = sampled(target | {"ignored": region[None]})
    assert inside(spared["anchors"], region) == inside(spared["regions"], region) == 0
    assert len(spared["anchors"]) > 10 and (spared["classes"] > 0).sum() == (plain["classes"] > 0).sum()
