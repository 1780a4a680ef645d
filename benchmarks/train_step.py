"""One training step, forward, backward and optimiser: ours against torchvision's unmodified Mask R-CNN.

Both are the same network, ResNet50-FPN with frozen norms and two frozen stages as in fine-tuning, with the same weights
and the same samples of anchors and proposals, so that their losses must agree. They differ in what a cell's mask is (a
number in a plane, or a plane of its own), in how boxes are matched with anchors, and in the layout of memory.

- ``ours``: :class:`cellseg.training.stepper.Stepper` as ``fit`` uses it.
- ``reference``: ``torchvision.models.detection.MaskRCNN`` on a stack of masks, with torch's optimiser as it comes.

Ratios, for few and for many cells: ``time_N``, ``memory_N``: what the reference needs for each second or byte of ours.
Memory is all that a step adds to weights and optimiser state: targets, activations, gradients.

Figures, for few and for many cells: ``images_per_second_N`` of ours, and ``launches_N`` and ``waits_N`` of one step,
see :func:`benchmarks.gpu.calls_of`.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cells import NUM_CLASSES, grid_sample
from benchmarks.gpu import calls_of
from benchmarks.measure import Report, add_sizes, alternate, make_parser, run
from cellseg.config import TrialConfig
from cellseg.data.planes import read_instances
from cellseg.data.sample import Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cellseg.data.batch import Item

FEW = 20
DIAMETER = 28
LEARNING_RATE = 0.0
"""The same arithmetic as with any other, and all steps of a run are alike."""
ANCHOR_SIZES = (32, 64, 128, 256, 512)
MODEL = {
    "backbone": "resnet50",
    "weights": "none",
    "norm": "frozen",
    "frozen_stages": 2,
    "anchors": f"{ANCHOR_SIZES[0]}-{ANCHOR_SIZES[-1]}",
    "anchor_ratios": "0.5,1,2",
    "rpn_assignment": "iou",
    "rpn_candidates": 2000,
    "rpn_proposals": 2000,
    "detections_per_image": 100,
    "normalization": "imagenet",
}
"""The defaults of ``torchvision.models.detection.MaskRCNN``."""

Step = Callable[[], dict[str, float]]
"""A step; returns its losses."""
Way = Callable[[list[Sample]], Step]
"""Prepares steps on a batch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("train_step", "A training step: ours against torchvision's.", rounds=5)
    sizes = {
        "side": (800, "pixels of the square image's side"),
        "cells": (500, f"cells in the image; {FEW} are measured too"),
        "batch": (1, "images in a step"),
    }
    add_sizes(parser, sizes)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    return run(parser, measure, {"side": 160, "cells": 16, "rounds": 1}, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run the contenders at the sizes in ``arguments``."""
    from cellseg.device import pick_device

    device = pick_device(arguments.device)
    reference = torchvision_model("resnet50", ANCHOR_SIZES, min_size=arguments.side, max_size=arguments.side)
    ways = {"ours": our_step(reference, device), "reference": reference_step(reference, device)}
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    bare = our_step(reference, device, tell=False)
    for count in (FEW, arguments.cells):
        rng = np.random.default_rng(0)
        samples = [grid_sample(rng, count, arguments.side, arguments.side, DIAMETER) for _ in range(arguments.batch)]
        contenders = {f"{name}, {count} cells": step(samples) for name, step in ways.items()}
        ours, theirs = contenders
        for first_use in contenders.values():
            first_use()
        measured = alternate(contenders, arguments.rounds, memory=device)
        assert_alike(measured.results[ours], measured.results[theirs])
        seconds |= measured.seconds
        peaks |= measured.peak_extra_bytes
        ratios[f"time_{count}"] = measured.ratio(theirs, ours)
        ratios[f"memory_{count}"] = measured.memory_ratio(theirs, ours)
        figures[f"images_per_second_{count}"] = arguments.batch / median(measured.seconds[ours])
        figures[f"launches_{count}"], figures[f"waits_{count}"] = calls_of(bare(samples), device)
    return Report(
        benchmark="train_step",
        description=f"A step on {arguments.batch} x {arguments.side} x {arguments.side} pixels, ResNet50-FPN",
        parameters={name: getattr(arguments, name) for name in ("side", "cells", "batch")} | {"device": str(device)},
        seconds=seconds,
        peak_extra_bytes=peaks,
        ratios=ratios,
        figures=figures,
    )


def torchvision_model(backbone_name: str, anchor_sizes: Sequence[int], **settings: Any) -> "nn.Module":
    """torchvision's Mask R-CNN with random weights, frozen norms and two frozen stages.

    Args:
        anchor_sizes: five, one for each level.
        settings: those of ``torchvision.models.detection.MaskRCNN``.
    """
    import torch
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name=backbone_name, weights=None, trainable_layers=3)
    for name, values in backbone.named_buffers():
        if name.endswith(("bn3.weight", "bn2.weight")):
            values.fill_(0.3)  # pretrained statistics keep activations in range; without any, this does
    anchors = AnchorGenerator(tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes))
    return MaskRCNN(backbone, NUM_CLASSES + 1, rpn_anchor_generator=anchors, **settings)


def our_step(reference: "nn.Module", device: "torch.device", tell: bool = True) -> Way:
    """A step as ``fit`` does it, on a network with the weights of ``reference``; its losses only where it is to
    ``tell`` them, for which the host waits."""
    from cellseg.data.loader import plain_item
    from cellseg.model.build import build_model
    from cellseg.training.stepper import Stepper

    trial = TrialConfig.from_flat({f"model.{name}": value for name, value in MODEL.items()})
    model = build_model(trial.model, trial.inference, NUM_CLASSES)
    model.load_state_dict(reference.state_dict())
    _same_samples(model)
    stepper = Stepper(model.train(), trial, device)

    def prepare(samples: list[Sample]) -> Step:
        items = [plain_item(sample, trial.data) for sample in samples]

        def step() -> dict[str, float]:
            losses = stepper.add_gradients(copied(items))
            stepper.step(LEARNING_RATE)
            return _numbers(losses) if tell else {}

        return step

    return prepare


def reference_step(model: "nn.Module", device: "torch.device") -> Way:
    """A step as torchvision's reference training does it, with the same optimiser and precision as ours."""
    import torch

    _same_samples(model)
    update = torchvision_update(model.to(device).train(), LEARNING_RATE, device)

    def prepare(samples: list[Sample]) -> Step:
        items = [(torch.from_numpy(sample.image_HWC).permute(2, 0, 1), stack_target(sample)) for sample in samples]

        def step() -> dict[str, float]:
            return _numbers(update(copied(items)))

        return step

    return prepare


def torchvision_update(
    model: "nn.Module", learning_rate: float, device: "torch.device"
) -> "Callable[[list[Item]], dict[str, Tensor]]":
    """A step on a batch as torchvision's own training does it, with our defaults for what it leaves open; returns the
    losses."""
    import torch

    from cellseg.device import autocast_dtype

    defaults = TrialConfig()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=defaults.optim.weight_decay)
    amp_dtype = autocast_dtype(defaults.train.amp, device)

    def update(batch: "list[Item]") -> "dict[str, Tensor]":
        images = [image.to(device).float() / 255 for image, _ in batch]
        targets = [{name: value.to(device) for name, value in target.items()} for _, target in batch]
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            losses = model(images, targets)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, defaults.optim.clip_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        return losses

    return update


def stack_target(sample: Sample) -> "dict[str, Tensor]":
    """A target as torchvision wants it: a mask of its own for each cell."""
    import torch

    from benchmarks.input_pipeline import masks_of

    cells = read_instances(sample.planes_PHW, sample.labels_N)
    return {
        "boxes": torch.from_numpy(cells.boxes_N4),
        "labels": torch.from_numpy(cells.labels_N),
        "masks": torch.from_numpy(masks_of(sample)),
    }


def copied(items: "list[Item]") -> "list[Item]":
    """New tensors, as they come from a loader: what targets take is part of a step's memory."""
    return [(image.clone(), {name: value.clone() for name, value in target.items()}) for image, target in items]


def assert_alike(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """The same network on the same samples of regions has the same losses, but for rounding."""
    for name, loss in theirs.items():
        assert math.isclose(ours[name], loss, rel_tol=1e-3, abs_tol=1e-4), f"{name}: {ours[name]} instead of {loss}"


def _same_samples(model: "nn.Module") -> None:
    """Draw the same samples of anchors and regions in every step. (Before them torchvision draws a scale.)"""
    import torch

    from cellseg.model.sampling import Sampler

    for part in ("rpn", "roi_heads"):  # ours draws other numbers for the same choice
        getattr(model, part).fg_bg_sampler = Sampler.like(getattr(model, part).fg_bg_sampler)
    model.get_submodule("rpn").register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)


def _numbers(losses: "dict[str, Tensor]") -> dict[str, float]:
    import torch

    values = {name: float(loss.detach()) for name, loss in losses.items()}
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return values


if __name__ == "__main__":
    sys.exit(main())
