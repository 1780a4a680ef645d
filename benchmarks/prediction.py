"""Prediction with whole masks: several images at a time, as on a GPU, against one after the other.

- ``ours``: :func:`cellseg.inference.image.predict_images` as export and validation use it on this device.
- ``reference``: the same, one image at a time.

Ratio: ``time``. Figures: ``images_per_second``, and on a GPU ``gpu_utilisation`` while ours ran.
"""

import argparse
import sys
from collections.abc import Sequence
from statistics import median

import numpy as np

from benchmarks.cells import NUM_CLASSES, grid_sample
from benchmarks.gpu import Utilisation
from benchmarks.measure import Report, add_sizes, alternate, make_parser, run
from benchmarks.train_step import ANCHOR_SIZES, MODEL
from cellseg.config import TrialConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("prediction", "Prediction: several images at a time against one after the other.", rounds=3)
    sizes = {"side": (512, "pixels of the square images' side"), "images": (32, "images"), "cells": (200, "in each")}
    add_sizes(parser, sizes)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    return run(parser, measure, {"side": 96, "images": 2, "cells": 9, "rounds": 1}, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run the contenders at the sizes in ``arguments``."""
    import torch

    from cellseg.device import Room, pick_device
    from cellseg.inference.image import predict_images
    from cellseg.model.build import build_model

    device = pick_device(arguments.device)
    trial = TrialConfig.from_flat({f"model.{name}": value for name, value in MODEL.items()})
    trial = trial.replace(model__anchors=f"{ANCHOR_SIZES[0]}-{ANCHOR_SIZES[-1]}")
    torch.manual_seed(0)
    model = build_model(trial.model, trial.inference, NUM_CLASSES).eval().to(device)
    rng, side = np.random.default_rng(0), arguments.side
    images = [grid_sample(rng, arguments.cells, side, side).image_HWC for _ in range(arguments.images)]
    utilisation = Utilisation(device)
    contenders = {
        "ours": utilisation.during(lambda: predict_images(model, images, trial)),
        "reference": lambda: predict_images(model, images, trial, room=Room(1)),
    }
    predict_images(model, images, trial)  # first use
    measured = alternate(contenders, arguments.rounds)
    figures = {"images_per_second": arguments.images / median(measured.seconds["ours"])}
    if device.type == "cuda":
        figures["gpu_utilisation"] = utilisation.mean()
    return Report(
        benchmark="prediction",
        description=f"Prediction of {arguments.images} images of {side} pixels, ResNet50-FPN",
        parameters={name: getattr(arguments, name) for name in ("side", "images", "cells")} | {"device": str(device)},
        seconds=measured.seconds,
        ratios={"time": measured.ratio("reference", "ours")},
        figures=figures,
    )


if __name__ == "__main__":
    sys.exit(main())
