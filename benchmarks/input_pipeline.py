"""From a decoded image to a training item: id planes against a stack of masks.

- ``ours``: what a loader's worker does, ``TrainingImages`` with the preset ``full`` (flips, affine, elastic, colour,
  blur or noise) at strength 0.5, boxes and labels included.
- ``reference``: a binary mask per cell through albumentations' own transforms with the same ranges and probabilities,
  then a box per mask. The masks are there to begin with: making them of an annotation costs nothing here.
- ``same transforms``: the stack through our transforms, which differ in a faster elastic deformation, then a box per
  mask. What is left of the difference is that of planes and stacks; and as the same seed makes the same change, its
  cells must equal ours.

Ratios: ``time``, ``time_same_transforms``: how many times as fast ours is; ``growth_100_to_800``: our time with 800
cells for each second with 100, in images of the same size: the median of what the two, one after the other, gave.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks.cells import grid_sample
from benchmarks.measure import Report, add_sizes, alternate, make_parser, one_thread, run
from cellseg.config import TrialConfig
from cellseg.data.augment import build_augmentation, ranges
from cellseg.data.planes import read_instances
from cellseg.data.sample import Sample
from cellseg.data.transforms import PROBABILITY, STEPS, albumentations_module

if TYPE_CHECKING:
    from cellseg.data.packed import PackedDataset

CONFIG = TrialConfig.model_validate({"augment": {"preset": "full", "strength": 0.5}})
FEW, MANY = 100, 800

Stack = tuple[np.ndarray, np.ndarray]
"""Boxes (K, 4) and classes (K,) of the masks that are left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("input_pipeline", "Augmentation and targets of one image: planes against masks.", rounds=7)
    sizes = {
        "height": (400, "pixels"),
        "width": (480, "pixels"),
        "cells": (160, "cells in the image"),
        "visits": (8, "times that the image is augmented in a run, with different seeds"),
        "growth-rounds": (40, "turns of the comparison of few and many cells"),
    }
    add_sizes(parser, sizes)
    return run(parser, measure, {"cells": 10, "visits": 2, "rounds": 1, "growth_rounds": 1}, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run the contenders at the sizes in ``arguments``."""
    rng = np.random.default_rng(0)
    size = arguments.height, arguments.width
    sample = grid_sample(rng, arguments.cells, *size)
    masks_NHW = masks_of(sample)
    visits = range(arguments.visits)
    contenders: dict[str, Callable[[], Any]] = {
        "ours": planes_way(sample, visits),
        "same transforms": same_transforms_way(sample, masks_NHW, visits),
        "reference": stack_way(sample, masks_NHW, visits),
    }
    by_count = {f"ours, {count} cells": planes_way(grid_sample(rng, count, *size), visits) for count in (FEW, MANY)}
    with one_thread():
        for first_use in (*contenders.values(), *by_count.values()):
            first_use()
        measured = alternate(contenders, arguments.rounds)
        growth = alternate(by_count, arguments.growth_rounds)
    few, many = by_count
    return Report(
        benchmark="input_pipeline",
        description=f"Augment {arguments.visits} times an image of {size[0]} x {size[1]} with {arguments.cells} cells",
        parameters={name: getattr(arguments, name) for name in ("height", "width", "cells", "visits")},
        seconds=measured.seconds | growth.seconds,
        ratios={
            "time": measured.ratio("reference", "ours"),
            "time_same_transforms": measured.ratio("same transforms", "ours"),
            f"growth_{FEW}_to_{MANY}": median(
                slow / quick for slow, quick in zip(growth.seconds[many], growth.seconds[few], strict=True)
            ),
        },
    )


def masks_of(sample: Sample) -> np.ndarray:
    """(N, H, W) uint8: a binary mask for each cell of a sample."""
    cells = read_instances(sample.planes_PHW, sample.labels_N)
    planes_NHW = sample.planes_PHW[cells.plane_N]
    return (planes_NHW == cells.numbers_N[:, None, None]).astype(np.uint8)


def planes_way(sample: Sample, visits: Sequence[int]) -> Callable[[], list]:
    """A run of ours: an item for each epoch in ``visits``."""
    from cellseg.data.loader import TrainingImages  # here, because it imports torch

    data = cast("PackedDataset", [sample])  # a list answers data[0] as packed data does
    images = TrainingImages(data, (0,), CONFIG)
    return lambda: [images[epoch, 0] for epoch in visits]


def stack_way(sample: Sample, masks_NHW: np.ndarray, visits: Sequence[int]) -> Callable[[], list[Stack]]:
    """A run of the reference: albumentations on image and masks, then boxes."""
    compose = albumentations_pipeline()

    def visit(seed: int) -> Stack:
        compose.set_random_seed(seed)
        changed = compose(image=sample.image_HWC, masks=masks_NHW)
        return boxes_of_masks(changed["masks"], sample.labels_N)

    return lambda: [visit(seed) for seed in visits]


def same_transforms_way(sample: Sample, masks_NHW: np.ndarray, visits: Sequence[int]) -> Callable[[], list[Stack]]:
    """A run of a stack of masks through our own transforms."""
    augmentation = build_augmentation(CONFIG.augment)

    def visit(seed: int) -> Stack:
        _, changed_NHW = augmentation(sample.image_HWC, masks_NHW, seed)
        return boxes_of_masks(changed_NHW, sample.labels_N)

    return lambda: [visit(seed) for seed in visits]


def albumentations_pipeline() -> Any:
    """albumentations' own transforms with the ranges and probabilities of ours."""
    A, reach = albumentations_module(), ranges(CONFIG.augment)
    # Displacements that spread as ours do and vary over the width of a cell: blurred white noise has a deviation of
    # 1 / (2 sigma sqrt(pi)), a uniform draw one of limit / sqrt(3). albumentations' default sigma of 50 is slower.
    sigma = 8.0
    elastic = {"sigma": sigma, "alpha": reach["displacement"] / 3**0.5 * 2 * sigma * np.pi**0.5}
    focus = A.GaussianBlur(blur_limit=0, sigma_limit=(0, reach["blur"]), p=1), A.GaussNoise((0, reach["noise"]), p=1)
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            STEPS["affine"](A, reach),  # ours take these from albumentations too, the affine one made quicker
            A.ElasticTransform(**elastic, p=PROBABILITY["elastic"]),
            STEPS["color"](A, reach),
            A.OneOf(focus, p=PROBABILITY["focus"]),
        ]
    )


def boxes_of_masks(masks_NHW: np.ndarray, labels_N: np.ndarray, min_area: int = 4) -> Stack:
    """Boxes and classes of the masks with at least ``min_area`` pixels, which is the rule of ``make_target``."""
    kept = [number for number, mask_HW in enumerate(masks_NHW) if np.count_nonzero(mask_HW) >= min_area]
    boxes = []
    for mask_HW in masks_NHW[kept]:
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4), labels_N[kept]


def cells_of_planes(sample: Sample, seed: int) -> Stack:
    """Make our targets of a sample, with the seed of :func:`same_transforms_way`."""
    from cellseg.data.targets import make_target  # here, because it imports torch

    augmentation = build_augmentation(CONFIG.augment)
    _, planes_PHW = augmentation(sample.image_HWC, sample.planes_PHW, seed)
    target = make_target(planes_PHW, sample.labels_N)
    return target["boxes"].numpy(), target["labels"].numpy()


if __name__ == "__main__":
    sys.exit(main())
