import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead

from cellseg.config import sizes_per_level
from cellseg.model.anchors import CellAnchors, SharedRPNHead, build_rpn_head

RATIOS = (0.5, 1.0, 2.0)
FIVE, SIX = (4, 8, 16, 32, 64), (2, 4, 8, 16, 32, 64)
MAPS = [torch.zeros(1, 16, side, side) for side in (16, 8, 4, 2, 1)]
IMAGES = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])


def test_surplus_small_sizes_share_the_finest_level():
    assert sizes_per_level(FIVE) == ((4,), (8,), (16,), (32,), (64,))
    assert sizes_per_level(SIX) == ((2, 4), (8,), (16,), (32,), (64,))
    assert sizes_per_level((1, *SIX)) == ((1, 2, 4), (8,), (16,), (32,), (64,))


def test_fewer_sizes_than_levels_are_our_bug():
    with pytest.raises(AssertionError):
        sizes_per_level((8, 16, 32, 64))


def test_with_a_size_a_level_the_anchors_are_torchvisions():
    (own,) = CellAnchors(FIVE, RATIOS)(IMAGES, MAPS)
    (reference,) = AnchorGenerator(tuple((size,) for size in FIVE), (RATIOS,) * 5)(IMAGES, MAPS)
    assert torch.equal(own, reference)


def test_two_sizes_on_the_finest_level_stay_together():
    generator = CellAnchors(SIX, RATIOS)
    assert generator.num_anchors_per_location() == [6, 3, 3, 3, 3]
    (anchors,) = generator(IMAGES, MAPS)
    (with_two,), (with_four,) = (CellAnchors((small, *FIVE[1:]), RATIOS)(IMAGES, MAPS) for small in (2, 4))
    finest = 16 * 16 * 3
    of_size = [of_one[:finest].reshape(16 * 16, 3, 4) for of_one in (with_two, with_four)]
    assert torch.equal(anchors[: 2 * finest].reshape(16 * 16, 6, 4), torch.cat(of_size, dim=1))
    assert torch.equal(anchors[2 * finest :], with_four[finest:])


def test_the_head_answers_with_as_many_outputs_as_each_level_has_anchors():
    head = build_rpn_head(CellAnchors(SIX, RATIOS), 16, conv_depth=1)
    objectness, deltas = head(MAPS)
    assert [scores.shape[1] for scores in objectness] == [6, 3, 3, 3, 3]
    assert [boxes.shape[1] for boxes in deltas] == [24, 12, 12, 12, 12]
    assert [scores.shape[2] for scores in objectness] == [16, 8, 4, 2, 1]


def test_coarse_levels_share_the_outputs_of_the_finest_levels_largest_size():
    torch.manual_seed(0)
    head = build_rpn_head(CellAnchors(SIX, RATIOS), 16, conv_depth=2)
    features = [torch.rand(1, 16, 4, 4)] * 5
    objectness, deltas = head(features)
    assert torch.equal(objectness[1], objectness[0][:, 3:])
    assert torch.equal(deltas[1], deltas[0][:, 12:])


def test_with_a_size_a_level_the_head_is_torchvisions():
    torch.manual_seed(0)
    own, reference = SharedRPNHead(16, [3] * 5, 1), RPNHead(16, 3, conv_depth=1)
    reference.load_state_dict(own.state_dict())
    features = [torch.rand(1, 16, 4, 4)] * 5
    for ours, theirs in zip(own(features), reference(features), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_weights_of_one_size_serve_both_sizes_of_the_finest_level():
    torch.manual_seed(0)
    five, six = build_rpn_head(CellAnchors(FIVE, RATIOS), 16, 1), build_rpn_head(CellAnchors(SIX, RATIOS), 16, 1)
    state = five.state_dict()
    shapes = {name: value.shape for name, value in state.items()}
    six.load_state_dict(state)
    assert {name: value.shape for name, value in state.items()} == shapes, "the caller's state must stay as it is"
    features = [torch.rand(1, 16, 4, 4)] * 5
    (scores, deltas), (wide_scores, wide_deltas) = five(features), six(features)
    for half in range(2):
        assert torch.allclose(wide_scores[0][:, 3 * half :][:, :3], scores[0])
        assert torch.allclose(wide_deltas[0][:, 12 * half :][:, :12], deltas[0])
    assert torch.allclose(wide_scores[4], scores[4])


def test_weights_of_more_sizes_do_not_fit_fewer():
    five, six = build_rpn_head(CellAnchors(FIVE, RATIOS), 16, 1), build_rpn_head(CellAnchors(SIX, RATIOS), 16, 1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        five.load_state_dict(six.state_dict())


@pytest.mark.parametrize("ratios", [(1.0,), (0.5, 2.0), (0.25, 0.5, 1.0, 2.0, 4.0)])
def test_an_anchor_has_the_area_of_its_size_and_the_height_to_width_of_its_ratio(ratios):
    generator = CellAnchors((32, 64, 128, 256, 512, 1024), ratios)
    sides = [(anchors[:, 2:] - anchors[:, :2]).unbind(dim=1) for anchors in generator.cell_anchors]
    (widths, heights), (coarse_widths, _) = sides[0], sides[-1]
    # torchvision rounds anchors to whole pixels.
    torch.testing.assert_close(
        (widths * heights).sqrt(), torch.tensor([32.0, 64]).repeat_interleave(len(ratios)), rtol=0.05, atol=0
    )
    torch.testing.assert_close(heights / widths, torch.tensor(ratios).repeat(2), rtol=0.1, atol=0)
    assert len(coarse_widths) == len(ratios)


@pytest.mark.parametrize("ratios", [(1.0,), (0.25, 0.5, 1.0, 2.0, 4.0)])
def test_the_head_shares_the_largest_sizes_outputs_for_any_number_of_ratios(ratios):
    torch.manual_seed(0)
    count = len(ratios)
    head = build_rpn_head(CellAnchors(SIX, ratios), 16, conv_depth=1)
    objectness, deltas = head([torch.rand(1, 16, 4, 4)] * 5)
    assert [scores.shape[1] for scores in objectness] == [2 * count, *[count] * 4]
    assert [boxes.shape[1] for boxes in deltas] == [8 * count, *[4 * count] * 4]
    five = build_rpn_head(CellAnchors(FIVE, ratios), 16, conv_depth=1)
    head.load_state_dict(five.state_dict())
    assert torch.equal(head.cls_logits.weight[:count], head.cls_logits.weight[count:])
    assert torch.equal(head.bbox_pred.weight[: 4 * count], five.bbox_pred.weight)


def test_weights_of_other_ratios_are_not_spread_over_the_anchors():
    three, six = (CellAnchors(FIVE, ratios) for ratios in (RATIOS, (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        build_rpn_head(six, 16, 1).load_state_dict(build_rpn_head(three, 16, 1).state_dict())
