"""Every corner of the model space builds, trains a step and predicts; what is frozen stays, what is not moves."""

import itertools

import pytest
import torch

from cellseg.config import BACKBONES, NUM_STAGES, RESNETS, TrialConfig
from cellseg.data.loader import plain_item
from cellseg.inference.image import predict_image
from cellseg.model.attention import CBAM, SqueezeExcitation
from cellseg.model.build import build_model
from cellseg.training.loss_weights import total_loss
from cellseg.training.optim import BODY, build_optimizer

SMALL = {
    "model.weights": "none",
    "model.fpn_channels": 8,
    "model.box_head_width": 8,
    "model.mask_head_layers": 1,
    "model.mask_head_width": 8,
    "model.rpn_candidates": 20,
    "model.rpn_proposals": 20,
    "model.roi_samples": 8,
    "model.anchors": "4-64",
    "model.detections_per_image": 5,
    "inference.score_threshold": 0.0,
    "optim.optimizer": "sgd",
    "optim.momentum": 0.0,
    "optim.lr": 0.1,
    "optim.weight_decay": 0.0,
}
FROZEN = (0, 1, NUM_STAGES - 1, NUM_STAGES)
ROI_LEVELS = ("0,1", "0,1,2,3")
COARSEST = {"backbone.fpn.layer_blocks.3.0.weight", "backbone.fpn.layer_blocks.3.0.bias"}
"""Layers that a batch without sampled anchors on the coarsest levels does not reach."""
LARGE = {"resnet101", "resnext50_32x4d", "resnext101_32x8d", "convnext_small", "convnext_base", "efficientnet_b1"}
"""Backbones whose corners take long; each is built once in the default run, in another corner than its neighbour."""


def corners():
    for backbone in (*BACKBONES, "timm:regnetx_002"):
        attentions = ("none", "se", "cbam") if backbone in RESNETS else ("none",)
        of_backbone = [
            corner
            for corner in itertools.product(attentions, FROZEN, ROI_LEVELS)
            if corner[0] == "none" or corner[1] < NUM_STAGES
        ]
        chosen = len(of_backbone) * BACKBONES.index(backbone) // len(BACKBONES) if backbone in LARGE else None
        for index, corner in enumerate(of_backbone):
            marks = [pytest.mark.slow] if chosen not in (None, index) else []
            yield pytest.param(backbone, *corner, marks=marks, id="-".join(map(str, (backbone, *corner))))


@pytest.mark.parametrize(("backbone", "attention", "frozen_stages", "roi_levels"), list(corners()))
def test_a_corner_trains_and_predicts(backbone, attention, frozen_stages, roi_levels, packed):
    config = TrialConfig.from_flat(
        SMALL
        | {
            "model.backbone": backbone,
            "model.attention": attention,
            "model.frozen_stages": frozen_stages,
            "model.roi_levels": roi_levels,
        }
    )
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, packed.num_classes)
    num_attentions = sum(isinstance(module, SqueezeExcitation | CBAM) for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}

    image_CHW, target = plain_item(packed[0], config.data)
    optimizer = build_optimizer(model, config.optim)
    total_loss(model.train()([image_CHW.float() / 255], [target]), config.loss).backward()
    optimizer.step()
    found = predict_image(model.eval(), packed[0].image_HWC, config)

    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_body = {name for name in trained if name.startswith(BODY)}
    assert bool(of_body) == (frozen_stages < NUM_STAGES)
    assert moved <= trained, "nothing that is frozen moves, statistics of norms included"
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    # ConvNeXt scales its blocks by 1e-6 at first: their norms move by less than a float32 near 1 can show.
    still = {name for name in trained - moved if gradients[name] is None or not gradients[name].any()}
    assert still <= COARSEST, "what is not frozen moves"
    assert (num_attentions > 0) == (attention != "none")
    assert len(found) <= 5
