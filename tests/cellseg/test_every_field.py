"""Every field of a config has an effect: two of its values give another model, other data, another curve, ..."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from cellseg.config import FIELDS, TrialConfig
from cellseg.data.auto import resolve_auto
from cellseg.data.groups import read_groups
from cellseg.data.loader import TrainingImages
from cellseg.data.packed import PackedDataset
from cellseg.data.split import split
from cellseg.inference.image import predict_image
from cellseg.model.build import build_model
from cellseg.training.loss_weights import total_loss
from cellseg.training.run import TrainingRun
from cellseg.training.schedule import learning_rate, num_decays
from cellseg.training.stepper import autocast_dtype

Probe = Callable[[TrialConfig, PackedDataset, Any], Any]

ELSEWHERE = {
    "data.root": "where the data lie changes nothing about a run",
    "data.layout": "how files are read: tests/cellseg/data/test_dataset.py",
    "data.annotations": "how files are read: tests/cellseg/data/test_dataset.py",
    "data.instances": "how files are read: tests/cellseg/data/test_release.py",
    "data.validation": "for data with splits of their own: tests/cellseg/data/importing/test_coco_exports.py",
    "data.channels": "how files are read: tests/cellseg/data/test_channels.py",
    "data.projection": "how files are read: tests/cellseg/data/test_channels.py",
    "train.compile": "the same with less time: tests/cellseg/test_stepper.py",
    "model.weights_folder": "where weights lie changes nothing about them: tests/cellseg/model/test_pretrained.py",
    "model.max_trainable": "a limit, not a property: tests/cellseg/model/test_build.py",
    "train.workers": "must not change anything: tests/cellseg/data/test_loader.py",
}
"""Fields that no trial differs in."""


def item(config, packed, tmp_path):
    """The pixels and boxes of two visits to the first training image."""
    images = TrainingImages(packed, split(packed.label_counts, config.data).training, config)
    visits = [images[epoch, 0] for epoch in (1, 2)]
    return [(image.shape, image.sum().item(), target["boxes"].tolist()) for image, target in visits]


def seen(config, packed, tmp_path):
    """Size and colour of what the network sees of an image in prediction."""
    from cellseg.data.resize import resize_image, scaled_size, to_color

    image_HWC = packed[0].image_HWC
    scaled_HWC = resize_image(to_color(image_HWC, config.data.color), scaled_size(*image_HWC.shape[:2], config.data))
    return scaled_HWC.shape, scaled_HWC.sum()


def images(config, packed, tmp_path):
    """Which images train and which validate."""
    if config.data.groups is not None:
        packed = packed.with_groups(read_groups(config.data, packed.names))
    return dataclasses.astuple(split(packed.label_counts, config.data, packed.groups))


def structure(config, packed, tmp_path):
    """Names, shapes and freezing of the model's parameters, and its buffers."""
    model = new_model(config, packed)
    state = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    return state, [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def losses(config, packed, tmp_path):
    """The losses of a batch."""
    model = new_model(config, packed).train()
    training = TrainingImages(packed, split(packed.label_counts, config.data).training, config)
    batch = [training[1, position] for position in range(2)]
    torch.manual_seed(0)
    out = model([image.float() / 255 for image, _ in batch], [target for _, target in batch])
    return {name: loss.item() for name, loss in out.items()}


def weighted(config, packed, tmp_path):
    """What is minimised, of losses that are all 1."""
    return total_loss({f"loss_{name}": 1.0 for name in type(config.loss).model_fields}, config.loss)


def rates(config, packed, tmp_path):
    """The learning rate over a run, whose third epoch was the last with a gain."""
    gains = [1.0, 2.0, 3.0] + [0.0] * 27
    patience, warmup = config.optim.plateau_patience, config.optim.warmup_epochs
    return [
        learning_rate(config.optim, step, 2, 30, num_decays(gains[: step // 2], warmup, patience)) for step in range(60)
    ]


def weights(config, packed, tmp_path):
    """The weights that two epochs lead to."""
    run = TrainingRun(config, packed, tmp_path, torch.device("cpu"))
    for _ in range(2):
        run.epoch += 1
        list(run.train_epoch())
    return {name: value.sum().item() for name, value in run.judged_model.state_dict().items()}


def run_length(config, packed, tmp_path):
    """When a run whose figures never improve after the first epoch ends."""
    run = TrainingRun(config, packed, tmp_path, torch.device("cpu"))
    run.best_epoch = 1
    while run.ending() is None:
        run.judged_epoch += 1
        run.watched.append(0.0)
    return run.judged_epoch


def judged(config, packed, tmp_path):
    """The best epoch of two whose figures disagree: the first has the better AP, the second the better loss."""
    run = TrainingRun(config, packed, tmp_path, torch.device("cpu"))
    for run.epoch, value in ((1, 1.0), (2, 0.5)):
        metrics: Future = Future()
        metrics.set_result({"segm/AP": 1 - value, "segm/AP50": value, "loss/validation": value})
        run.losses, run.validate = {"loss": 1.0}, lambda metrics=metrics: metrics
        run.report(run.judge(run.conclude(seconds=1.0)))
    return run.best_epoch, run.watched


def precision(config, packed, tmp_path):
    """The type that a GPU would compute in."""
    return autocast_dtype(config.train.amp, torch.device("cuda"))


def detections(config, packed, tmp_path):
    """The cells found in an image by a model that scores them at random."""
    found = predict_image(new_model(config, packed).eval(), packed[0].image_HWC, config)
    return found.scores_N.tolist(), found.boxes_N4.tolist(), [rle["counts"] for rle in found.rles]


def new_model(config, packed):
    torch.manual_seed(0)
    return build_model(resolve_auto(config, packed).model, config.inference, packed.num_classes)


PLATEAU = {"optim.schedule": "plateau"}
POINTREND = {"model.mask_head": "pointrend"}
LARGE = {  # proposals from all levels, which are as many as the FPN has
    "data.shorter_side": 300,
    "model.anchors": "32-512",
    "model.rpn_candidates": 5,
    "model.detections_per_image": 50,
}
FIND_ALL = {"inference.score_threshold": 0.0, "inference.nms_threshold": 0.9}

# field: (settings for both, the two values, probe)
CASES: dict[str, tuple[dict[str, Any], tuple[Any, Any], Probe]] = {
    "data.color": ({}, ("rgb", "grey"), seen),
    "data.resize": ({"data.shorter_side": 48}, ("aspect", "square"), seen),
    "data.shorter_side": ({}, (None, 48), seen),
    "data.longer_side": ({}, (1333, 48), seen),
    "data.train_scale_min": ({}, (1.0, 0.5), item),
    "data.crop": ({}, (None, 32), item),
    "data.num_folds": ({}, (2, 4), images),
    "data.fold": ({}, (0, 1), images),
    "data.split_seed": ({}, (0, 1), images),
    "data.groups": ({"data.num_folds": 2}, (None, "(0|[5-8])(?=[1-4]?$)"), images),  # 1 to 4 belong together
    "data.train_on": ({}, ("folds", "unvalidated"), images),
    "augment.preset": ({}, ("none", "flips"), item),
    "augment.strength": ({"augment.preset": "geometric"}, (0.1, 0.9), item),
    "augment.min_visible": ({"data.crop": 32}, (0.0, 0.9), item),
    "model.detector": ({}, ("v1", "v2"), structure),
    "model.backbone": ({}, ("resnet10t", "resnet18"), structure),
    "model.norm": ({}, ("group", "batch"), structure),
    "model.frozen_stages": ({}, (0, 1), structure),
    "model.attention": ({}, ("none", "se"), structure),
    "model.attention_reduction": ({"model.attention": "se"}, (4, 16), structure),
    "model.deformable_stages": ({}, (0, 1), structure),
    "model.fpn_channels": ({}, (16, 24), structure),
    "model.normalization": ({}, ("imagenet", "none"), losses),
    "model.anchors": ({}, ("4-64", "8-128"), losses),
    "model.anchor_ratios": ({}, ("0.5,1,2", "0.7,1,1.4"), losses),
    "model.roi_levels": (LARGE | FIND_ALL, ("0,1", "0,1,2,3"), detections),
    "model.rpn_candidates": ({}, (20, 50), losses),
    "model.rpn_proposals": ({}, (20, 50), losses),
    "model.rpn_nms_threshold": ({}, (0.1, 0.9), losses),
    "model.rpn_samples": ({}, (16, 256), losses),
    "model.rpn_positive_fraction": ({"model.rpn_samples": 10}, (0.1, 0.5), losses),
    "model.rpn_assignment": ({}, ("iou", "atss"), losses),
    "model.rpn_foreground_iou": ({"model.rpn_assignment": "iou", "model.rpn_background_iou": 0.1}, (0.2, 0.9), losses),
    "model.rpn_background_iou": ({"model.rpn_assignment": "iou"}, (0.1, 0.3), losses),
    "model.rpn_atss_places": ({"model.rpn_assignment": "atss"}, (1, 9), losses),
    "model.rpn_best_anchor": ({"model.rpn_assignment": "iou", "model.rpn_foreground_iou": 1.0}, (False, True), losses),
    "model.roi_samples": ({}, (8, 16), losses),
    "model.roi_positive_fraction": ({}, (0.1, 0.5), losses),
    "model.box_head_width": ({}, (32, 64), structure),
    "model.mask_head": ({}, ("plain", "pointrend"), structure),
    "model.mask_alignment": ({}, ("torchvision", "aligned"), losses),
    "model.mask_head_layers": ({}, (1, 2), structure),
    "model.mask_head_width": ({}, (16, 24), structure),
    "model.point_samples": (POINTREND, (20, 40), losses),
    "model.point_doublings": (POINTREND | FIND_ALL, (1, 2), detections),
    "model.detections_per_image": (FIND_ALL, (5, 10), detections),
    "optim.optimizer": ({}, ("sgd", "adamw"), weights),
    "optim.lr": ({}, (1e-3, 2e-3), rates),
    "optim.momentum": ({"optim.optimizer": "sgd"}, (0.1, 0.9), weights),
    "optim.weight_decay": ({}, (0.0, 0.5), weights),
    "optim.decay_on": ({"optim.weight_decay": 0.5}, ("all", "weights"), weights),
    "optim.backbone_lr_factor": ({}, (1.0, 0.1), weights),
    "optim.accumulate_batches": ({}, (1, 2), weights),
    "optim.clip_norm": ({"optim.optimizer": "sgd"}, (None, 0.01), weights),
    "optim.ema_decay": ({}, (None, 0.9), weights),
    "optim.schedule": ({}, ("constant", "cosine"), rates),
    "optim.step_epochs": ({"optim.schedule": "step"}, (3, 5), rates),
    "optim.gamma": ({"optim.schedule": "step"}, (0.1, 0.5), rates),
    "optim.restart_epochs": ({"optim.schedule": "warm-restarts"}, (5, 10), rates),
    "optim.restart_multiplier": ({"optim.schedule": "warm-restarts", "optim.restart_epochs": 5}, (1, 2), rates),
    "optim.warmup_fraction": ({"optim.schedule": "warmup-cosine"}, (0.05, 0.2), rates),
    "optim.warmup_epochs": (PLATEAU, (0, 2), rates),
    "optim.warmup_factor": (PLATEAU | {"optim.warmup_epochs": 2}, (0.1, 0.5), rates),
    "optim.plateau_watch": (PLATEAU, ("training-loss", "metric"), judged),
    "optim.plateau_patience": (PLATEAU, (3, 5), rates),
    "optim.plateau_factor": (PLATEAU, (0.1, 0.5), rates),
    "train.epochs": ({}, (2, 3), run_length),
    "train.batch_size": ({}, (2, 3), weights),
    "train.metric": ({}, ("segm/AP50", "segm/AP"), judged),
    "train.patience": ({"train.epochs": 20}, (None, 3), run_length),
    "train.stop_after_decays": (PLATEAU | {"train.epochs": 30, "optim.plateau_patience": 2}, (None, 3), run_length),
    "train.amp": ({}, ("off", "bf16"), precision),
    "train.seed": ({}, (0, 1), item),
    "inference.score_threshold": ({}, (0.0, 0.3), detections),
    "inference.nms": (FIND_ALL, ("hard", "soft"), detections),
    "inference.nms_threshold": ({"inference.score_threshold": 0.0}, (0.1, 0.9), detections),
    "inference.soft_nms_sigma": ({"inference.nms": "soft", "inference.score_threshold": 0.0}, (0.1, 2.0), detections),
    "inference.mask_threshold": (FIND_ALL, (0.3, 0.6), detections),
    "inference.mask_pasting": (FIND_ALL | {"inference.mask_threshold": 0.3}, ("model", "exact"), detections),
    "inference.mask_quality": (FIND_ALL, (0.0, 1.0), detections),
    "inference.min_area": (FIND_ALL, (0, 60), detections),
    "inference.scales": (FIND_ALL, ("1", "1,1.5"), detections),
    "inference.turns": (FIND_ALL, ("none", "flips"), detections),
    "inference.tile": (FIND_ALL | {"inference.tile_overlap": 32}, (None, 48), detections),
    "inference.tile_overlap": (FIND_ALL | {"inference.tile": 48}, (32, 47), detections),
} | {f"loss.{name}": ({}, (1.0, 2.0), weighted) for name in type(TrialConfig().loss).model_fields}


def test_no_field_is_forgotten():
    assert set(CASES) | set(ELSEWHERE) | {"model.weights"} == set(FIELDS)


@pytest.mark.parametrize("key", CASES)
def test_two_values_of_a_field_behave_differently(key, tiny_config, packed, tmp_path):
    settings, values, probe = CASES[key]
    flat = tiny_config().to_flat() | {"optim.lr": 1e-2} | settings
    outcomes = [
        probe(TrialConfig.from_flat(flat | {key: value}), packed, tmp_path / str(index))
        for index, value in enumerate(values)
    ]
    again = probe(TrialConfig.from_flat(flat | {key: values[0]}), packed, tmp_path / "again")
    assert outcomes[0] == again, "the same value must behave the same"
    assert outcomes[0] != outcomes[1]


def test_weights_decide_where_training_starts(tiny_config, packed, tmp_path):
    config = tiny_config(model__norm="group")
    start = new_model(config, packed).state_dict()
    file = tmp_path / "weights.pt"
    torch.save({name: value + 1 for name, value in start.items()}, file)
    loaded = new_model(config.replace(model__weights=str(file)), packed).state_dict()
    name = "roi_heads.box_predictor.cls_score.weight"
    assert np.allclose(loaded[name], start[name] + 1)
