import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from cellseg.config import InferenceConfig, ModelConfig
from cellseg.data.rle import decode
from cellseg.data.targets import make_target
from cellseg.errors import UserError
from cellseg.inference.paste import paste_masks
from cellseg.model import waiting
from cellseg.model.build import build_model, count_parameters, resolved_norm
from cellseg.model.norms import InputTypeGroupNorm, OnePassFrozenBatchNorm2d

REAL = {
    "weights": "none",
    "norm": "batch",
    "anchors": "32-512",
    "detections_per_image": 100,
    "rpn_candidates": 1000,
    "rpn_proposals": 1000,
}


def tiny_model(config, num_classes=4, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(config.model, config.inference, num_classes)


def discs(height: int, width: int, centres) -> tuple[np.ndarray, np.ndarray]:
    """Planes and labels of discs of 12 px; classes 1..4 in turn."""
    planes_PHW = np.zeros((1, height, width), np.uint16)
    rows, columns = np.mgrid[:height, :width]
    for number, (row, column) in enumerate(centres, start=1):
        planes_PHW[0][np.hypot(rows - row, columns - column) < 6.5] = number
    return planes_PHW, np.arange(len(centres)) % 4 + 1


@pytest.mark.parametrize(("detector", "parameters"), [("v1", 43_991_661), ("v2", 45_896_557)])
def test_the_full_models_have_as_many_parameters_as_torchvisions(detector, parameters):
    with torch.device("meta"):
        model = build_model(ModelConfig(detector=detector, **REAL), InferenceConfig(), 4)
    assert count_parameters(model) == count_parameters(model, trainable=True) == parameters


@pytest.mark.parametrize(("detector", "reference"), [("v1", maskrcnn_resnet50_fpn), ("v2", maskrcnn_resnet50_fpn_v2)])
def test_weights_have_torchvisions_names_and_shapes(detector, reference):
    with torch.device("meta"):
        own = build_model(ModelConfig(detector=detector, **REAL), InferenceConfig(), 4).state_dict()
        theirs = reference(weights=None, weights_backbone=None, num_classes=5).state_dict()
    assert {name: value.shape for name, value in own.items()} == {n: value.shape for n, value in theirs.items()}


def torchvision_twin(detector: str) -> MaskRCNN:
    """Made of torchvision's own parts alone, for images whose shorter side is 64 px."""
    norm = nn.BatchNorm2d if detector == "v2" else None
    layers = {f"layer{index + 1}": str(index) for index in range(4)}
    backbone = BackboneWithFPN(resnet18(weights=None), layers, [64, 128, 256, 512], 16, norm_layer=norm)
    box_head = TwoMLPHead(16 * 49, 32)
    if detector == "v2":
        box_head = FastRCNNConvFCHead((16, 7, 7), [16] * 4, [32], norm_layer=norm)
    return MaskRCNN(
        backbone,
        min_size=64,
        rpn_anchor_generator=AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_head=RPNHead(16, 3, conv_depth=2 if detector == "v2" else 1),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(32, 5),
        mask_head=MaskRCNNHeads(16, [16], 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(16, 16, 5),
        rpn_pre_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=50,
        box_batch_size_per_image=16,
        box_detections_per_img=20,
    )


@pytest.fixture(params=["v1", "v2"])
def twins(request, tiny_config):
    config = tiny_config(
        model__detector=request.param,
        model__backbone="resnet18",
        model__norm="batch",
        model__rpn_assignment="iou",
        model__rpn_candidates=50,
    )
    own, theirs = tiny_model(config), torchvision_twin(request.param)
    theirs.load_state_dict(own.state_dict())
    for part in ("rpn", "roi_heads"):  # which anchors and proposals are drawn is a matter of chance: the same for both
        getattr(theirs, part).fg_bg_sampler = getattr(own, part).fg_bg_sampler
    theirs.transform.torch_choice = min  # it draws a size in training, even from one: our transform draws nothing
    return own, theirs


@pytest.mark.parametrize("may_wait", [True, False], ids=["may-wait", "as-on-a-gpu"])
def test_losses_and_their_gradients_are_torchvisions(twins, may_wait, monkeypatch):
    monkeypatch.setattr(waiting, "may_wait", lambda device: may_wait)
    cells = [
        discs(64, 80, [(15, 15), (15, 27), (40, 30), (50, 70)]),
        discs(90, 64, [(20, 20), (80, 50), (3, 60)]),
    ]
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *planes_PHW.shape[1:], generator=generator) for planes_PHW, _ in cells]
    targets = [make_target(planes_PHW, labels_N) for planes_PHW, labels_N in cells]
    masks = [
        torch.from_numpy((planes_PHW == np.arange(1, len(labels_N) + 1)[:, None, None]).astype(np.uint8))
        for planes_PHW, labels_N in cells
    ]
    stacked = [{"boxes": t["boxes"], "labels": t["labels"], "masks": m} for t, m in zip(targets, masks, strict=True)]
    results = []
    for model, truth in zip(twins, (targets, stacked), strict=True):
        torch.manual_seed(2)  # both sample their proposals with torch's global generator
        losses = model.train()(images, truth)
        losses.pop("loss_dice", None)  # has no counterpart there
        sum(losses.values()).backward()
        results.append((losses, {name: p.grad for name, p in model.named_parameters()}))
    (losses, gradients), (true_losses, true_gradients) = results
    assert losses["loss_mask"] > 0
    assert {n: v.item() for n, v in losses.items()} == pytest.approx(
        {n: v.item() for n, v in true_losses.items()}, rel=1e-5
    )
    for name, gradient in true_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("may_wait", [True, False], ids=["may-wait", "as-on-a-gpu"])
def test_detections_and_masks_are_torchvisions(twins, may_wait, monkeypatch):
    monkeypatch.setattr(waiting, "may_wait", lambda device: may_wait)
    image = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        (own,), (theirs,) = (model.eval()([image]) for model in twins)
    assert len(theirs["boxes"]) > 5
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(own[name], theirs[name])
    pasted = np.stack(
        [decode(rle) for rle in paste_masks(own["masks"][:, 0].numpy(), own["boxes"].numpy(), 64, 80, 0.5)]
    )
    np.testing.assert_array_equal(pasted, theirs["masks"][:, 0].numpy() >= 0.5)


def test_anchor_sizes_and_ratios_reach_the_generator(tiny_config):
    anchors = tiny_model(tiny_config(model__anchors="8-128", model__anchor_ratios="1")).rpn.anchor_generator
    assert anchors.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert anchors.aspect_ratios == ((1.0,),) * 5
    model = tiny_model(tiny_config(model__anchors="2-64", model__anchor_ratios="0.4,1,1.5,2.5"))
    assert model.rpn.anchor_generator.sizes == ((2, 4), (8,), (16,), (32,), (64,))
    assert model.rpn.anchor_generator.aspect_ratios == ((0.4, 1.0, 1.5, 2.5),) * 5
    assert model.rpn.anchor_generator.num_anchors_per_location() == [8, 4, 4, 4, 4]
    planes_PHW, labels_N = discs(64, 64, [(20, 20)])
    losses = model.train()([torch.rand(3, 64, 64)], [make_target(planes_PHW, labels_N)])
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("none", [0, 0, 0], [1, 1, 1]),
        ("0.9,0.8,0.7/0.1,0.2,0.3", [0.9, 0.8, 0.7], [0.1, 0.2, 0.3]),
    ],
)
def test_images_are_normalised_as_asked_and_padded_with_0(tiny_config, normalization, mean, std):
    transform = tiny_model(tiny_config(model__normalization=normalization)).transform
    images = [torch.rand(3, 64, 40), torch.rand(3, 50, 64)]
    batch, _ = transform(images)
    assert batch.image_sizes == [(64, 40), (50, 64)]
    expected = torch.zeros(2, 3, 64, 64)
    for index, image in enumerate(images):
        height, width = image.shape[1:]
        expected[index, :, :height, :width] = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
            :, None, None
        ]
    torch.testing.assert_close(batch.tensors, expected)


@pytest.mark.parametrize(("roi_levels", "names"), [("0,1", ["0", "1"]), ("0,1,2,3", ["0", "1", "2", "3"])])
def test_the_heads_pool_from_the_levels_that_were_asked_for(tiny_config, roi_levels, names):
    heads = tiny_model(tiny_config(model__roi_levels=roi_levels)).roi_heads
    assert heads.box_roi_pool.featmap_names == heads.mask_roi_pool.featmap_names == names


def test_widths_and_depths_reach_the_heads(tiny_config):
    config = tiny_config(
        model__fpn_channels=24, model__box_head_width=40, model__mask_head_layers=3, model__mask_head_width=32
    )
    model = tiny_model(config)
    assert model.backbone.out_channels == 24
    assert model.roi_heads.box_head.fc7.out_features == 40
    assert len(model.roi_heads.mask_head) == 3
    assert model.roi_heads.mask_predictor.mask_fcn_logits.in_channels == 32
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 5


def test_sampling_and_thresholds_reach_the_model(tiny_config):
    config = tiny_config(
        inference__nms_threshold=0.3,
        inference__score_threshold=0.2,
        model__rpn_candidates=70,
        model__rpn_proposals=30,
        model__roi_positive_fraction=0.4,
    )
    model = tiny_model(config)
    assert (model.roi_heads.nms_thresh, model.roi_heads.score_thresh) == (0.3, 0.2)
    assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 16
    assert model.roi_heads.fg_bg_sampler.positive_fraction == 0.4
    for mode in (model.train(), model.eval()):
        assert (mode.rpn.pre_nms_top_n(), mode.rpn.post_nms_top_n()) == (70, 30)


def test_too_many_trainable_parameters_are_refused_with_the_surplus(tiny_config):
    count = count_parameters(tiny_model(tiny_config()), trainable=True)
    tiny_model(tiny_config(model__max_trainable=count))
    with pytest.raises(UserError) as raised:
        tiny_model(tiny_config(model__max_trainable=count - 1234))
    (line,) = raised.value.problems
    assert f"at most {count - 1234:,} trainable parameters are allowed, but got {count:,}, 1,234 too many." in line


def test_frozen_stages_do_not_count_as_trainable(tiny_config):
    model, frozen = tiny_model(tiny_config()), tiny_model(tiny_config(model__frozen_stages=5))
    assert count_parameters(frozen) == count_parameters(model)
    body = count_parameters(model.backbone.body)
    assert count_parameters(frozen, trainable=True) == count_parameters(model) - body


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("detector", ["v1", "v2"])
def test_a_training_step_moves_everything_but_the_frozen_stages(tiny_config, norm, detector):
    model = tiny_model(tiny_config(model__norm=norm, model__detector=detector, model__frozen_stages=2)).train()
    planes_PHW, labels_N = discs(64, 64, [(20, 20), (40, 40), (50, 10)])
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    sum(model([torch.rand(3, 64, 64)], [make_target(planes_PHW, labels_N)]).values()).backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    frozen = tuple(f"backbone.body.{child}." for child in ("conv1", "bn1", "layer1"))
    assert {name for name in moved if name.startswith(frozen)} == set()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(name.startswith("backbone.body.layer2.") for name in trainable)
    # A bias of 0 has no decay, and no gradient where its class met no sample.
    assert {name for name in trainable - moved if not name.endswith("bias")} == set()
    statistics = {name for name in moved if "running_" in name and "backbone.body" in name}
    assert bool(statistics) == (norm == "batch")


@pytest.mark.parametrize(
    ("weights", "norm", "resolved"),
    [
        ("none", "auto", "group"),
        ("imagenet", "auto", "frozen"),
        ("coco", "auto", "frozen"),
        ("some/file.pt", "auto", "frozen"),
        ("none", "batch", "batch"),
        ("none", "frozen", "frozen"),
        ("imagenet", "batch", "batch"),
    ],
)
def test_norm_auto_follows_the_weights(weights, norm, resolved):
    assert resolved_norm(ModelConfig(weights=weights, norm=norm)) == resolved


@pytest.mark.parametrize(
    ("norm", "kind", "absent"),
    [
        ("auto", InputTypeGroupNorm, nn.BatchNorm2d),
        ("frozen", OnePassFrozenBatchNorm2d, InputTypeGroupNorm),
        ("batch", nn.BatchNorm2d, InputTypeGroupNorm),
    ],
)
def test_the_norm_is_in_the_model(tiny_config, norm, kind, absent):
    kinds = {type(m) for m in tiny_model(tiny_config(model__norm=norm, model__detector="v2")).modules()}
    assert kind in kinds
    assert absent not in kinds


@pytest.mark.parametrize("most", [1, 7])
def test_no_image_has_more_detections_than_allowed(tiny_config, most):
    config = tiny_config(model__detections_per_image=most, inference__score_threshold=0.0)
    with torch.inference_mode():
        found = tiny_model(config).eval()([torch.rand(3, 64, 64), torch.rand(3, 40, 70)])
    assert [len(image["boxes"]) for image in found] == [most, most]


@pytest.mark.parametrize("nms", ["hard", "soft"])
@pytest.mark.parametrize(
    ("mask_head", "doublings", "side"), [("plain", 1, 28), ("pointrend", 1, 56), ("pointrend", 3, 224)]
)
def test_nothing_found_is_a_legal_answer(tiny_config, nms, mask_head, doublings, side):
    config = tiny_config(
        inference__score_threshold=1.0,
        inference__nms=nms,
        model__mask_head=mask_head,
        model__point_doublings=doublings,
    )
    model = tiny_model(config).eval()
    with torch.inference_mode():
        (found,) = model([torch.rand(3, 64, 64)])
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 1, side, side),
    }


@pytest.mark.parametrize("detector", ["v1", "v2"])
def test_a_sample_without_cells_trains_and_spoils_no_statistics(tiny_config, detector):
    model = tiny_model(tiny_config(model__detector=detector, model__norm="batch")).train()
    losses = model([torch.rand(3, 64, 64)], [make_target(*discs(64, 64, []))])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_the_seed_decides_the_new_weights(tiny_config):
    first, same, other = (tiny_model(tiny_config(), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["rpn.head.cls_logits.weight"], other["rpn.head.cls_logits.weight"])


def test_unresolved_settings_are_our_bug(tiny_config):
    autos = {
        "model__rpn_candidates": "auto",
        "model__rpn_proposals": "auto",
        "model__anchors": "auto",
        "model__detections_per_image": "auto",
        "model__normalization": "dataset",
    }
    for name, value in autos.items():
        with pytest.raises(AssertionError, match="resolve_auto comes first"):
            tiny_model(tiny_config(**{name: value}))
