"""Random changes to training images, made to the image and its instance planes alike.

The cost of a change does not depend on how many cells there are: planes are warped once, with nearest neighbour, and
boxes, labels and masks are read from them afterwards (:mod:`cellseg.data.planes`). A cell may leave the image, in whole
or in part; what moves in from outside has no cell and the colour of the image's background.

Shape suffixes: P planes, H height, W width, C colour channels.
"""

import os
import random
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from cellseg.config import AugmentConfig

PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "flips": ("flips",),
    "color": ("flips", "color"),
    "geometric": ("flips", "affine"),
    "elastic": ("flips", "elastic"),
    "full": ("flips", "affine", "elastic", "color", "focus"),
}
"""The steps of each preset, in order. ``flips`` picks one of the eight ways to lay a square on itself; the others stand
in STEPS."""

FULL_STRENGTH: dict[str, float] = {
    "scale": 0.6,  # sizes change by a factor between 1 / 1.6 and 1.6
    "rotate": 45.0,  # degrees either way; quarter turns do the rest
    "shear": 12.0,  # degrees either way
    "displacement": 5.0,  # pixels that elastic deformation moves a point, along each axis, either way
    "brightness": 0.3,  # share of the brightness added or taken
    "contrast": 0.4,  # share of the contrast added or taken
    "saturation": 0.4,  # share of the saturation added or taken
    "hue": 0.06,  # share of the colour circle, either way
    "blur": 1.5,  # pixels, sigma of a Gaussian
    "noise": 0.08,  # share of the full scale, standard deviation
}
"""The reach of each range at strength 1: as far as cells stay cells. At strength s it is 0.1 + 0.9 s of that."""

PROBABILITY = {"affine": 0.8, "elastic": 0.5, "color": 0.8, "focus": 0.5}
"""How often a step changes an image at all."""

ELASTIC_SPACING = 16
"""Pixels between the knots of an elastic deformation: displacements vary over about the width of a cell.
More than twice the largest displacement, so that the image never folds over itself."""


def build_augmentation(augment: AugmentConfig) -> "Augmentation":
    """The augmentation that ``augment`` asks for."""
    return Augmentation(augment)


class Augmentation:
    """``augmentation(image, planes, seed)``: the same arguments give the same result, in any order and any process.

    Pickles as its config. Not for use by two threads at once: give each its own.
    """

    def __init__(self, augment: AugmentConfig):
        self.augment = augment
        self._steps = PRESETS[augment.preset]
        reach = {name: limit * (0.1 + 0.9 * augment.strength) for name, limit in FULL_STRENGTH.items()}
        transforms = [STEPS[step](_albumentations(), reach) for step in self._steps if step in STEPS]
        self._compose = _albumentations().Compose(transforms) if transforms else None
        self._warps = [transform for transform in transforms if hasattr(transform, "border_mode")]

    def __reduce__(self) -> tuple:
        return build_augmentation, (self.augment,)

    def __call__(self, image_HWC: np.ndarray, planes_PHW: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """A changed image and its changed planes; the arguments stay as they are.

        Args:
            image_HWC: (H, W, 3) uint8, RGB.
            planes_PHW: (P, H, W) uint16, see :class:`cellseg.data.sample.Sample`.
            seed: not negative.

        Returns:
            Arrays like the arguments; height and width may have changed places. Numbers of planes are those that came
            in, less the cells that left the image.
        """
        rng = np.random.default_rng(seed)
        if "flips" in self._steps:
            image_HWC, planes_PHW = _flip(
                image_HWC, planes_PHW, turns=int(rng.integers(4)), mirrored=rng.integers(2) == 1
            )
        if self._compose is not None:
            for warp in self._warps:
                warp.fill = background_color(image_HWC, planes_PHW)
            # Not set_random_seed: that gives every transform the same numbers, so that all of them act or none.
            self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
            changed = self._compose(image=image_HWC, masks=planes_PHW)
            image_HWC, planes_PHW = changed["image"], changed["masks"]
        return image_HWC, planes_PHW


def random_crop(
    image_HWC: np.ndarray, planes_PHW: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A square of ``size`` pixels, anywhere in the image with equal chance.

    An image with a side below ``size`` is padded at the bottom and right with zeros. Cells may be cut.
    """
    height, width = image_HWC.shape[:2]
    top = int(rng.integers(max(height - size, 0) + 1))
    left = int(rng.integers(max(width - size, 0) + 1))
    image_HWC = image_HWC[top : top + size, left : left + size]
    planes_PHW = planes_PHW[:, top : top + size, left : left + size]
    missing = (0, size - image_HWC.shape[0]), (0, size - image_HWC.shape[1])
    return np.pad(image_HWC, (*missing, (0, 0))), np.pad(planes_PHW, ((0, 0), *missing))


def background_color(image_HWC: np.ndarray, planes_PHW: np.ndarray) -> tuple[float, ...]:
    """The median colour of the pixels without a cell (of all pixels, where cells cover everything)."""
    pixels = image_HWC[::4, ::4]  # every sixteenth pixel tells the median well enough
    bare = pixels[~planes_PHW[:, ::4, ::4].any(axis=0)]
    return tuple(float(value) for value in np.median(bare if len(bare) else pixels.reshape(-1, 3), axis=0))


def _flip(image_HWC: np.ndarray, planes_PHW: np.ndarray, turns: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    image_HWC, planes_PHW = np.rot90(image_HWC, turns), np.rot90(planes_PHW, turns, axes=(1, 2))
    if mirrored:
        image_HWC, planes_PHW = image_HWC[:, ::-1], planes_PHW[:, :, ::-1]
    return np.ascontiguousarray(image_HWC), np.ascontiguousarray(planes_PHW)


def _affine(A: ModuleType, reach: dict[str, float]) -> Any:
    return A.Affine(
        scale=(1 / (1 + reach["scale"]), 1 + reach["scale"]),
        balanced_scale=True,
        keep_ratio=True,
        rotate=(-reach["rotate"], reach["rotate"]),
        shear=(-reach["shear"], reach["shear"]),
        p=PROBABILITY["affine"],
    )


def _elastic(A: ModuleType, reach: dict[str, float]) -> Any:
    class SplineElastic(A.ElasticTransform):  # type: ignore[name-defined]
        """Elastic deformation from random displacements at knots, with a smooth surface through them.

        albumentations blurs a field of noise as large as the image, which takes six times as long.
        """

        def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, np.ndarray]:
            height, width = params["shape"][:2]
            knots = 2, height // ELASTIC_SPACING + 2, width // ELASTIC_SPACING + 2
            shifts = self.random_generator.uniform(-self.alpha, self.alpha, knots).astype(np.float32)
            shift_y, shift_x = (cv2.resize(shift, (width, height), interpolation=cv2.INTER_CUBIC) for shift in shifts)
            return {
                "map_x": np.arange(width, dtype=np.float32) + shift_x,
                "map_y": np.arange(height, dtype=np.float32)[:, None] + shift_y,
            }

    return SplineElastic(alpha=reach["displacement"], p=PROBABILITY["elastic"])


def _color(A: ModuleType, reach: dict[str, float]) -> Any:
    # All of it leaves grey images grey, as does the noise below: many microscopes know no colour.
    jitter = {name: (1 - reach[name], 1 + reach[name]) for name in ("brightness", "contrast", "saturation")}
    return A.ColorJitter(**jitter, hue=(-reach["hue"], reach["hue"]), p=PROBABILITY["color"])


def _focus(A: ModuleType, reach: dict[str, float]) -> Any:
    return A.OneOf(
        [
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, reach["blur"]), p=1.0),
            A.GaussNoise(std_range=(0.0, reach["noise"]), per_channel=False, p=1.0),
        ],
        p=PROBABILITY["focus"],
    )


STEPS: dict[str, Callable[[ModuleType, dict[str, float]], Any]] = {
    "affine": _affine,
    "elastic": _elastic,
    "color": _color,
    "focus": _focus,
}
"""How each step but ``flips`` is made, from the albumentations module and the reach of every range."""


@cache
def _albumentations() -> ModuleType:
    """The module albumentations, imported without the call to the network that it makes otherwise."""
    switch = "NO_ALBUMENTATIONS_UPDATE"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        import albumentations
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
    return albumentations
