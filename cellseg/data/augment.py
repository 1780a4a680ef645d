"""Random changes to training images, made to the image and its instance planes alike.

The cost of a change does not depend on how many cells there are: planes are warped once, with nearest neighbour, and
boxes, labels and masks are read from them afterwards (:mod:`cellseg.data.planes`). A cell may leave the image, in whole
or in part; what moves in from outside has no cell and the colour of the image's background.

Shape suffixes: P planes, H height, W width, C colour channels.
"""

import random

import cv2
import numpy as np

from cellseg.config import AugmentConfig
from cellseg.data.transforms import FULL_STRENGTH, REPORTED, STEPS, Reach, albumentations_module

PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "flips": ("flips",),
    "color": ("flips", "color"),
    "stain": ("flips", "stain"),
    "focus": ("flips", "focus"),
    "blur": ("flips", "blur"),
    "noise": ("flips", "noise"),
    "geometric": ("flips", "affine"),
    "elastic": ("flips", "elastic"),
    "grid": ("flips", "grid"),
    "full": ("flips", "affine", "elastic", "color", "focus"),
    "reported-aug": ("mirror", "affine", "color", "focus"),
    "reported-elastic": ("mirror", "affine", "elastic", "color", "focus"),
}
"""The steps of each preset, in order. ``flips`` picks one of the eight ways to lay a square on itself, ``mirror`` swaps
left and right or not; the others stand in STEPS. Warps come first, while the colour they fill in is still that of the
background. The reported presets are those of a report that names the steps, but neither their order nor ranges."""

QUARTER_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


def build_augmentation(augment: AugmentConfig) -> "Augmentation":
    """Build the augmentation that ``augment`` describes."""
    return Augmentation(augment)


class Augmentation:
    """``augmentation(image, planes, seed)``: the same arguments give the same result, in any order and any process.

    Pickles as its config. Not for use by two threads at once: give each its own.
    """

    def __init__(self, augment: AugmentConfig):
        self.augment = augment
        self._steps = PRESETS[augment.preset]
        made = [step for step in self._steps if step in STEPS]
        transforms = [STEPS[step](albumentations_module(), ranges(augment)) for step in made]
        self._compose = albumentations_module().Compose(transforms) if transforms else None
        self._warps = [transform for transform in transforms if hasattr(transform, "border_mode")]

    def __reduce__(self) -> tuple:
        return build_augmentation, (self.augment,)

    def __call__(self, image_HWC: np.ndarray, planes_PHW: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Augment an image and its planes; the arguments stay unchanged.

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
        elif "mirror" in self._steps:
            image_HWC, planes_PHW = _flip(image_HWC, planes_PHW, turns=0, mirrored=rng.integers(2) == 1)
        if self._compose is not None:
            if self._warps:
                fill = background_color(image_HWC, planes_PHW)
                for warp in self._warps:
                    warp.fill = fill
            # Not set_random_seed: that gives every transform the same numbers, so that all of them act or none.
            self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
            changed = self._compose(image=image_HWC, masks=planes_PHW)
            image_HWC, planes_PHW = changed["image"], changed["masks"]
        return image_HWC, planes_PHW


def ranges(augment: AugmentConfig) -> Reach:
    """Scale the random ranges: a tenth of FULL_STRENGTH at strength 0, all of it at 1; REPORTED for the reported
    presets."""
    if augment.preset.startswith("reported-"):
        return REPORTED
    return {name: limit * (0.1 + 0.9 * augment.strength) for name, limit in FULL_STRENGTH.items()}


def random_crop(
    image_HWC: np.ndarray, planes_PHW: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A square of ``size`` pixels, anywhere in the image with equal chance.

    An image with a side below ``size`` is padded at the bottom and right with its background's colour, without cells.
    Cells may be cut.
    """
    height, width = image_HWC.shape[:2]
    top = int(rng.integers(max(height - size, 0) + 1))
    left = int(rng.integers(max(width - size, 0) + 1))
    crop_HWC = image_HWC[top : top + size, left : left + size]
    crop_PHW = planes_PHW[:, top : top + size, left : left + size]
    if crop_HWC.shape[:2] == (size, size):
        return np.ascontiguousarray(crop_HWC), np.ascontiguousarray(crop_PHW)
    padded_HWC = np.empty((size, size, 3), np.uint8)
    padded_HWC[:] = np.rint(background_color(image_HWC, planes_PHW))
    padded_HWC[: crop_HWC.shape[0], : crop_HWC.shape[1]] = crop_HWC
    missing = (0, size - crop_HWC.shape[0]), (0, size - crop_HWC.shape[1])
    return padded_HWC, np.pad(crop_PHW, ((0, 0), *missing))


def background_color(image_HWC: np.ndarray, planes_PHW: np.ndarray) -> tuple[float, ...]:
    """Compute the median colour of the pixels without a cell (of all pixels if cells cover everything)."""
    every = slice(None, None, 4)  # every sixteenth pixel estimates the median well enough
    bare_hw = np.logical_not(planes_PHW[:, every, every].any(axis=0))
    if not bare_hw.any():
        bare_hw = np.ones_like(bare_hw)
    return tuple(_median(channel_hW[:, every][bare_hw]) for channel_hW in cv2.split(image_HWC[every]))


def _median(values: np.ndarray) -> float:
    """Compute the median of uint8 values from their counts: ``numpy.median`` takes three times as long."""
    numbers_up_to = np.cumsum(np.bincount(values))
    middle = np.searchsorted(numbers_up_to, [(len(values) - 1) // 2, len(values) // 2], side="right")
    return float(middle.mean())


def _flip(image_HWC: np.ndarray, planes_PHW: np.ndarray, turns: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Turn image and planes anticlockwise by quarter turns, then mirror them left to right."""

    def flip(image: np.ndarray) -> np.ndarray:
        # OpenCV is ten times as fast as a copy of the view that numpy.rot90 returns.
        turned = image if turns == 0 else cv2.rotate(image, QUARTER_TURNS[turns])
        return cv2.flip(turned, 1) if mirrored else turned

    if turns == 0 and not mirrored:
        return image_HWC, planes_PHW
    return flip(image_HWC), np.stack([flip(plane_HW) for plane_HW in planes_PHW])
