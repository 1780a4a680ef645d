"""Boxes are float32 whatever the precision that a GPU trains in: CPU autocast computes in the same types."""

import itertools

import pytest
import torch

from cellseg.data.targets import make_target
from cellseg.model import heads as heads_module
from cellseg.model.build import build_model
from cellseg.model.heads import CellRoIHeads
from cellseg.model.rpn import CellRPN

CORNERS = [
    *itertools.product([torch.bfloat16], ("v1", "v2"), ("0,1", "0,1,2,3"), ("plain", "pointrend")),
    (torch.float16, "v1", "0,1,2,3", "plain"),  # a CPU is slow in this type
    (torch.float16, "v2", "0,1", "pointrend"),
]
HEIGHT, WIDTH = 64, 1408
"""Beyond 1024 px neighbours in bfloat16 are 8 px apart."""


def wide_batch():
    """An image whose cells, 15 x 21 px at odd places, lie mostly where half precision is coarse."""
    planes = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int32)
    for number in range(1, 41):
        left, top = 3 + 33 * number, 5 + 7 * (number % 4)
        planes[0, top : top + 21, left : left + 15] = number
    target = make_target(planes.numpy().astype("uint16"), torch.arange(40).numpy() % 2 + 1)
    return [torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))], [target]


@pytest.fixture
def build(tiny_config):
    def make(**flat):
        torch.manual_seed(0)
        config = tiny_config(model__anchors="8-128", model__roi_samples=64, **flat)
        return build_model(config.model, config.inference, 2)

    return make


class Watch:
    """Keeps what passes through methods of the RPN and the heads."""

    def __init__(self, monkeypatch):
        self.seen: dict[str, list] = {}
        for owner, name in (
            (CellRPN, "forward"),
            (CellRPN, "labels"),
            (CellRPN, "_losses"),
            (CellRoIHeads, "regions"),
            (CellRoIHeads, "_box_losses"),
            (CellRoIHeads, "_mask_logits"),
            (CellRoIHeads, "postprocess_detections"),
            (heads_module, "roi_mask_targets"),
            (heads_module, "point_loss"),
        ):
            monkeypatch.setattr(owner, name, self._keeping(name, getattr(owner, name)))

    def _keeping(self, name, function):
        def kept(*arguments, **keywords):
            result = function(*arguments, **keywords)
            self.seen.setdefault(name, []).append((arguments, result))
            return result

        return kept


def floats(value):
    """The floating-point tensors in ``value``, at any depth of lists, tuples, dicts and dataclasses."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    return [tensor for part in value for tensor in floats(part)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize(("dtype", "detector", "roi_levels", "mask_head"), CORNERS)
def test_training_has_its_boxes_in_float32(build, monkeypatch, dtype, detector, roi_levels, mask_head):
    model = build(model__detector=detector, model__roi_levels=roi_levels, model__mask_head=mask_head).train()
    images, targets = wide_batch()
    watch = Watch(monkeypatch)
    convolved = []
    model.backbone.register_forward_hook(lambda module, args, maps: convolved.append(maps["0"].dtype))
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        losses = model(images, targets)
    assert convolved == [dtype], "the backbone computes in half precision"
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name in ("forward", "labels", "regions", "_box_losses", "_mask_logits", "roi_mask_targets", "point_loss"):
        for _, result in watch.seen.get(name, []):
            assert {tensor.dtype for tensor in floats(result)} <= {torch.float32}, name
    assert ("point_loss" in watch.seen) == (mask_head == "pointrend")
    (((_, scores, deltas, grid, truths), _),) = watch.seen["_losses"]
    boxes = [truth["boxes"] for truth in truths]
    assert {t.dtype for t in (scores, deltas, grid.boxes_A4, *boxes)} == {torch.float32}
    ((_, ((proposals,), _)),) = watch.seen["forward"]
    assert len(proposals.frac().unique()) > 20, "no grid of whole pixels"
    # The truth comes through as it is: it is among the regions, and the mask of each is read at its own box.
    ((_, (regions,)),) = watch.seen["regions"]
    true_boxes = {tuple(box) for box in targets[0]["boxes"].tolist()}
    taught = {tuple(box) for box in regions.boxes_P4[: regions.on_cells].tolist()}
    assert len(taught & true_boxes) >= 10
    ((arguments, _),) = watch.seen["roi_mask_targets"]
    assert torch.equal(arguments[3], regions.boxes_P4[: regions.on_cells])


@pytest.mark.parametrize(("dtype", "detector", "roi_levels", "mask_head"), CORNERS)
def test_prediction_has_its_boxes_in_float32(build, dtype, detector, roi_levels, mask_head):
    settings = {"inference__score_threshold": 0.0, "inference__nms_threshold": 0.9}
    model = build(model__detector=detector, model__roi_levels=roi_levels, model__mask_head=mask_head, **settings).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        (found,) = model(wide_batch()[0])
    assert len(found["boxes"]) == 20
    assert {found[name].dtype for name in ("boxes", "scores", "masks")} == {torch.float32}
    assert len(found["boxes"].frac().unique()) > 10
    assert torch.equal(found["scores"], found["scores"].sort(descending=True).values)
