"""Random changes to training images, made to the image and its instance planes alike.

The cost of a change does not depend on how many cells there are: planes are warped once, with nearest neighbour, and
boxes, labels and masks are read from them afterwards (:mod:`cellseg.data.planes`). A cell may leave the image, in whole
or in part; what moves in from outside has no cell and the colour of the image's background.

Shape suffixes: P planes, H height, W width, C colour channels.
"""

import math
import random
from dataclasses import dataclass

import cv2
import numpy as np

from cellseg.config import AugmentConfig
from cellseg.data.transforms import FULL_STRENGTH, REPORTED, STEPS, Reach, albumentations_module
from cellseg.data.warp import draw_affine, magnification, place_crop, warp

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
    "stain-full": ("flips", "affine", "elastic", "stain", "focus"),
    "reported-aug": ("mirror", "affine", "color", "focus"),
    "reported-elastic": ("mirror", "affine", "elastic", "color", "focus"),
}
"""The steps of each preset, in order. ``flips`` picks one of the eight ways to lay a square on itself, ``mirror`` swaps
left and right or not; the others stand in STEPS. Warps come first, while the colour they fill in is still that of the
background. The reported presets are those of a report that names the steps, but neither their order nor ranges."""

WARPS = frozenset({"affine", "elastic", "grid"})
"""The steps that can move a part of a cell out of the image."""

QUARTER_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


@dataclass(frozen=True)
class Changed:
    """The result of an augmentation."""

    image_HWC: np.ndarray
    planes_PHW: np.ndarray
    magnification: float
    """Factor by which the area of a cell grew that lies inside completely. Deformations and grids, which grow some
    cells and shrink others, do not count."""


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
        made = {step: STEPS[step](albumentations_module(), ranges(augment)) for step in self._steps if step in STEPS}
        self._affine = made.pop("affine", None)
        self._compose = albumentations_module().Compose([*made.values()]) if made else None
        self._deformations = [made[step] for step in made if step in WARPS]
        # Pixels around a crop that a deformation may move in; cubic interpolation overshoots by up to a quarter.
        self._margin = math.ceil(1.25 * ranges(augment)["displacement"]) if "elastic" in made else 0

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
        changed = self.change(image_HWC, planes_PHW, seed)
        return changed.image_HWC, changed.planes_PHW

    def change(self, image_HWC: np.ndarray, planes_PHW: np.ndarray, seed: int, crop: int | None = None) -> Changed:
        """Augment as a call does; the result also has the growth of areas.

        Args:
            crop: the result is a square of so many pixels, anywhere in the image. What a warp moves into it from
                outside comes from the image, as far as that reaches. None: the whole image.
        """
        rng = np.random.default_rng(seed)
        turns, mirrored = orientation(self.augment, rng)
        fill = background_color(image_HWC, planes_PHW) if self._affine or self._deformations else (0.0,)
        factor = 1.0
        if crop is None:
            image_HWC, planes_PHW = _flip(image_HWC, planes_PHW, turns, mirrored)
            size = image_HWC.shape[:2]
        else:
            size = crop + 2 * self._margin, crop + 2 * self._margin
        matrix_33 = draw_affine(self._affine, size, rng) if self._affine else None
        if matrix_33 is not None:
            factor = magnification(matrix_33)
            if crop is not None:
                matrix_33 = place_crop(matrix_33, image_HWC.shape[:2], crop, size[0], rng)
            image_HWC, planes_PHW = warp(image_HWC, planes_PHW, matrix_33, size, fill)
        elif crop is not None:
            image_HWC, planes_PHW = random_crop(image_HWC, planes_PHW, crop, rng, self._margin)
        if crop is not None:
            image_HWC, planes_PHW = _flip(image_HWC, planes_PHW, turns, mirrored)
        if self._compose is not None:
            for deformation in self._deformations:
                deformation.fill = fill
            # Not set_random_seed: that gives every transform the same numbers, so that all of them act or none.
            self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
            changed = self._compose(image=image_HWC, masks=planes_PHW)
            image_HWC, planes_PHW = changed["image"], changed["masks"]
        if crop is not None and self._margin:
            inner = slice(self._margin, self._margin + crop)
            image_HWC = np.ascontiguousarray(image_HWC[inner, inner])
            planes_PHW = np.ascontiguousarray(planes_PHW[:, inner, inner])
        return Changed(image_HWC, planes_PHW, factor)


def orientation(augment: AugmentConfig, rng: np.random.Generator) -> tuple[int, bool]:
    """(quarter turns, whether mirrored): an augmentation's first draws, which determine the image's shape."""
    steps = PRESETS[augment.preset]
    if "flips" in steps:
        return int(rng.integers(4)), rng.integers(2) == 1
    return 0, "mirror" in steps and rng.integers(2) == 1


def turns_sides(augment: AugmentConfig, seed: int) -> bool:
    """Whether the augmentation with this seed swaps the height and width of an image."""
    return orientation(augment, np.random.default_rng(seed))[0] % 2 == 1


def ranges(augment: AugmentConfig) -> Reach:
    """Scale the random ranges: a tenth of FULL_STRENGTH at strength 0, all of it at 1; REPORTED for the reported
    presets."""
    if augment.preset.startswith("reported-"):
        return REPORTED
    return {name: limit * (0.1 + 0.9 * augment.strength) for name, limit in FULL_STRENGTH.items()}


def random_crop(
    image_HWC: np.ndarray, planes_PHW: np.ndarray, size: int, rng: np.random.Generator, margin: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a square of ``size`` pixels uniformly from the image, with ``margin`` pixels around it.

    An image with a side below ``size`` is padded at the bottom and right with its background's colour, without cells;
    so is a margin that leaves the image, on any side. Cells may be cut.
    """
    height, width = image_HWC.shape[:2]
    top = int(rng.integers(max(height - size, 0) + 1)) - margin
    left = int(rng.integers(max(width - size, 0) + 1)) - margin
    side = size + 2 * margin
    rows, columns = slice(max(top, 0), max(top + side, 0)), slice(max(left, 0), max(left + side, 0))
    crop_HWC, crop_PHW = image_HWC[rows, columns], planes_PHW[:, rows, columns]
    if crop_HWC.shape[:2] == (side, side):
        return np.ascontiguousarray(crop_HWC), np.ascontiguousarray(crop_PHW)
    above, before = max(-top, 0), max(-left, 0)
    inside = (
        slice(above, above + crop_HWC.shape[0]),
        slice(before, before + crop_HWC.shape[1]),
    )
    padded_HWC = np.empty((side, side, 3), np.uint8)
    padded_HWC[:] = np.rint(background_color(image_HWC, planes_PHW))
    padded_HWC[inside] = crop_HWC
    padded_PHW = np.zeros((len(planes_PHW), side, side), planes_PHW.dtype)
    padded_PHW[(slice(None), *inside)] = crop_PHW
    return padded_HWC, padded_PHW


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
