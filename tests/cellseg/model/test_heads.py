import math

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, box_iou

from cellseg.model import heads
from cellseg.model.build import build_model
from cellseg.model.pooling import PyramidRoIAlign


@pytest.fixture
def build(tiny_config):
    def make(**flat):
        torch.manual_seed(0)
        config = tiny_config(**flat)
        return build_model(config.model, config.inference, 2)

    return make


@pytest.fixture
def model(build):
    return build()


def target(boxes, labels) -> dict[str, torch.Tensor]:
    """Boxes (x1, y1, x2, y2) filled with their cells, on 64 x 64 px."""
    planes = torch.zeros(1, 64, 64, dtype=torch.int32)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        planes[0, top:bottom, left:right] = number
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "planes": planes,
        "plane": torch.zeros(len(boxes), dtype=torch.int64),
        "number": torch.arange(1, len(boxes) + 1),
    }


LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_dice", "loss_objectness", "loss_rpn_box_reg"}


@pytest.mark.parametrize(("mask_head", "of_masks"), [("plain", set()), ("pointrend", {"loss_point"})])
def test_without_cells_the_losses_of_masks_are_0_and_every_parameter_still_gets_a_gradient(build, mask_head, of_masks):
    model = build(model__mask_head=mask_head)
    losses = model.train()([torch.rand(3, 64, 64)], [target([], [])])
    assert set(losses) == LOSSES | of_masks
    assert all(losses[name] == 0 for name in {"loss_mask", "loss_dice", *of_masks})
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("mask_head", ["plain", "pointrend"])
def test_cells_and_no_cells_in_one_batch_give_finite_losses(build, mask_head):
    model = build(model__mask_head=mask_head)
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    losses = model.train()(images, [target([(4, 4, 20, 24), (30, 30, 50, 50)], [1, 2]), target([], [])])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(loss > 0 for name, loss in losses.items() if name in {"loss_mask", "loss_dice", "loss_point"})


@pytest.mark.parametrize(
    ("loss", "layer"),
    [
        ("loss_mask", "mask_predictor.mask_fcn_logits"),
        ("loss_dice", "mask_predictor.mask_fcn_logits"),
        ("loss_point", "point_head.predictor"),
    ],
)
def test_only_the_mask_of_the_cells_own_class_is_trained(build, loss, layer):
    model = build(model__mask_head="pointrend")
    losses = model.train()([torch.rand(3, 64, 64)], [target([(4, 4, 30, 30)], [2])])
    losses[loss].backward()
    gradient = model.roi_heads.get_submodule(layer).bias.grad
    assert gradient[:2].tolist() == [0, 0]
    assert gradient[2] != 0


def test_a_target_without_planes_is_our_bug(model):
    torchvisions = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(AssertionError):
        model.train()([torch.rand(3, 64, 64)], [torchvisions])


def test_a_detection_is_a_box_with_probabilities_inside_of_it(model):
    with torch.inference_mode():
        (found,) = model.eval()([torch.rand(3, 64, 48)])
    count = len(found["boxes"])
    assert 0 < count <= 20
    assert found["masks"].shape == (count, 1, 28, 28)
    assert 0 <= found["masks"].min() <= found["masks"].max() <= 1
    assert set(found["labels"].tolist()) <= {1, 2}
    assert (found["boxes"][:, 2] <= 48).all() and (found["boxes"][:, 3] <= 64).all()
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


@pytest.mark.parametrize("largest", [330, 30], ids=["all-levels", "finest-level"])
@pytest.mark.parametrize("levels", [["0", "1"], ["0", "1", "2", "3"]])
def test_pooling_is_torchvisions_where_padding_is_small(levels, largest):
    generator = torch.Generator().manual_seed(0)
    features = {str(i): torch.rand(1, 4, 128 >> i, 160 >> i, generator=generator) for i in range(4)}
    corners = torch.rand(50, 2, generator=generator) * 300
    boxes = [torch.cat([corners, corners + torch.rand(50, 2, generator=generator) * largest + 1], dim=1)]
    own = PyramidRoIAlign(levels, 7)(features, boxes, [(512, 640)])
    assert torch.equal(own, MultiScaleRoIAlign(levels, 7, sampling_ratio=2)(features, boxes, [(512, 640)]))


@pytest.mark.parametrize("first", [(33, 86), (20, 20), (66, 64), (45, 33)])
def test_what_is_found_does_not_depend_on_the_images_seen_before(build, first):
    """torchvision's own pooling takes its strides from the first image, and wrong ones from these sizes."""
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    fresh, used = build().eval(), build().eval()
    with torch.inference_mode():
        used([torch.rand(3, *first)])
        (alone,), (later,) = fresh([image]), used([image])
    assert len(alone["boxes"]) > 0
    assert all(torch.equal(alone[name], later[name]) for name in alone)


def test_the_share_of_positive_proposals_is_bounded_as_asked(build):
    """Of 16 sampled proposals; the cells' own boxes are proposals too, so there are always positives to sample."""
    cells = target([(4 * i, 4 * j, 4 * i + 4, 4 * j + 4) for i in range(4) for j in range(4)], [1] * 16)
    positives = []
    for share in (0.25, 0.75):
        heads = build(model__roi_positive_fraction=share).roi_heads
        (drawn,) = heads.regions([torch.rand(50, 4).cumsum(1) * 20], [cells])
        assert drawn.on_cells == (drawn.labels_P > 0).sum()
        positives.append(drawn.on_cells)
    assert positives == [4, 12]


@pytest.mark.parametrize("mask_head", ["plain", "pointrend"])
def test_masks_are_the_same_however_many_are_made_at_once(build, monkeypatch, mask_head):
    model = build(model__mask_head=mask_head, inference__score_threshold=0.0).eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 50), torch.rand(3, 32, 64)]
    with torch.inference_mode():
        whole = model(images)
        monkeypatch.setattr(heads, "MASKS_AT_ONCE", 3)
        parts = model(images)
    for one, other in zip(whole, parts, strict=True):
        assert len(one["masks"]) > 3
        assert one["boxes"].equal(other["boxes"])
        assert one["masks"].shape == other["masks"].shape
        assert torch.allclose(one["masks"], other["masks"], atol=1e-5)


@pytest.mark.parametrize("mask_head", ["plain", "pointrend"])
def test_without_detections_there_are_no_masks(build, mask_head):
    model = build(model__mask_head=mask_head, inference__score_threshold=1.0).eval()
    with torch.inference_mode():
        (found,) = model([torch.rand(3, 64, 64)])
    side = 112 if mask_head == "pointrend" else 28
    assert found["masks"].shape == (0, 1, side, side)


def test_soft_suppression_keeps_overlapping_boxes_at_lower_scores(build):
    """The first box is far better; the second overlaps it by an IoU of 0.8; the third is alone."""
    proposals = torch.tensor([[0.0, 0, 50, 50], [0, 0, 50, 40], [0, 0, 50, 50], [10, 55, 30, 63]])
    logits = torch.tensor([[0.0, 4, 0], [0, 3, 0], [0, 0, 1], [0, 2, 0]])
    scores_of = {}
    for nms in ("hard", "soft"):
        heads = build(inference__nms=nms, inference__score_threshold=0.25).roi_heads
        found = heads.postprocess_detections(logits, torch.zeros(4, 12), [proposals], [(64, 64)])
        (boxes,), (scores,), (labels,) = found
        assert labels.tolist() == {"hard": [1, 1, 2], "soft": [1, 1, 2, 1]}[nms]
        assert torch.equal(scores, scores.sort(descending=True).values)
        scores_of[nms] = dict(
            zip([tuple(box) for box in boxes[labels == 1].tolist()], scores[labels == 1], strict=True)
        )
    best, alone, overlapping = (0, 0, 50, 50), (10, 55, 30, 63), (0, 0, 50, 40)
    assert overlapping not in scores_of["hard"]
    assert all(scores_of["soft"][box] == scores_of["hard"][box] for box in (best, alone))
    raw = logits.softmax(dim=1)[1, 1]
    assert scores_of["soft"][overlapping] == pytest.approx(float(raw) * math.exp(-(0.8**2) / 0.5), rel=1e-5)


@pytest.mark.parametrize("limit", [3, 1000])
@pytest.mark.parametrize("threshold", [0.05, 0.25])
def test_hard_suppression_is_torchvisions_bit_for_bit(build, threshold, limit):
    heads = build(inference__score_threshold=threshold, model__detections_per_image=limit).roi_heads
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(90, 2, generator=generator) * 60
    proposals = torch.cat([corners, corners + torch.rand(90, 2, generator=generator) * 20], dim=1).split([50, 0, 40])
    logits, deltas = torch.randn(90, 3, generator=generator), torch.randn(90, 12, generator=generator)
    arguments = logits, deltas, list(proposals), [(64, 64), (64, 64), (50, 70)]
    own, theirs = heads.postprocess_detections(*arguments), RoIHeads.postprocess_detections(heads, *arguments)
    assert len(theirs[0][0]) > 2
    for ours, expected in zip(own, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_mask_of_a_region_is_trained_on_the_cell_that_its_box_was_matched_to(build, monkeypatch):
    cells = [(4, 4, 20, 24), (30, 30, 50, 50), (36, 4, 60, 20), (4, 40, 24, 60)]
    images = [torch.rand(3, 64, 64) for _ in range(2)]
    targets = [target(cells, [1, 2, 1, 2]), target(cells[::-1], [2, 1, 2, 1])]
    seen = {"loss_mask": [], "loss_point": []}
    mask_targets, point_loss = heads.roi_mask_targets, heads.point_loss

    def watch_masks(planes, plane, number, rois_R4, matched_R, *rest):
        seen["loss_mask"].append((rois_R4, number[matched_R]))
        return mask_targets(planes, plane, number, rois_R4, matched_R, *rest)

    def watch_points(head, features, logits, labels_R, rois, matched, targets):
        numbers = [t["number"][index] for t, index in zip(targets, matched, strict=True)]
        seen["loss_point"] += zip(rois, numbers, strict=True)
        truth = [t["labels"][index] for t, index in zip(targets, matched, strict=True)]
        assert torch.equal(labels_R, torch.cat(truth))
        return point_loss(head, features, logits, labels_R, rois, matched, targets)

    monkeypatch.setattr(heads, "roi_mask_targets", watch_masks)
    monkeypatch.setattr(heads, "point_loss", watch_points)
    build(model__mask_head="pointrend").train()(images, targets)
    for name, regions in seen.items():
        assert len(regions) == 2, name
        for (rois_R4, number_R), truth in zip(regions, targets, strict=True):
            best_R = box_iou(rois_R4, truth["boxes"]).argmax(dim=1)
            assert len(best_R.unique()) > 1, "or any rule would do"
            assert torch.equal(number_R, truth["number"][best_R]), name
