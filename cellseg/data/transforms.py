"""Random steps of an augmentation, taken from albumentations where it has a good one.

Each maker takes the albumentations module and the reach of every range, and returns a transform of image and masks. A
transform draws all its numbers from the generators that ``Compose.set_random_state`` gives it.

Shape suffixes: H height, W width, C colour channels, 3 stains.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import cv2
import numpy as np

Reach = dict[str, float]
"""Limit of each random range; names and units are those of FULL_STRENGTH."""

FULL_STRENGTH: Reach = {
    "scale": 0.6,  # sizes change by a factor between 1 / 1.6 and 1.6
    "rotate": 45.0,  # degrees either way; quarter turns do the rest
    "shear": 12.0,  # degrees either way
    "displacement": 5.0,  # pixels that elastic deformation moves a point, along each axis, either way
    "grid": 0.3,  # share of a grid's cell that it grows or shrinks, along each axis
    "brightness": 0.3,  # share of the brightness added or taken
    "contrast": 0.4,  # share of the contrast added or taken
    "saturation": 0.4,  # share of the saturation added or taken
    "hue": 0.06,  # share of the colour circle, either way
    "stain_scale": 0.2,  # share of each stain's density added or taken
    "stain_shift": 0.1,  # density of each stain added everywhere or taken; 0.1 of a stain dims white by a tenth
    "blur": 1.5,  # pixels, sigma of a Gaussian
    "noise": 0.08,  # share of the full scale, standard deviation
}
"""Limits at strength 1: as far as cells stay plausible."""

REPORTED: Reach = {
    "scale": 0.2,
    "rotate": 15.0,
    "shear": 5.0,
    "displacement": 3.0,
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.03,
    "blur": 1.0,
    "noise": 0.04,
}
"""Limits in the reported pipelines. The report names their steps, not their ranges; these are moderate."""

PROBABILITY = {
    "affine": 0.8,
    "elastic": 0.5,
    "grid": 0.5,
    "color": 0.8,
    "stain": 0.8,
    "focus": 0.5,
    "blur": 0.5,
    "noise": 0.5,
}
"""Probability with which each step is applied."""

ELASTIC_SPACING = 16
"""Pixels between the knots of an elastic deformation: displacements vary over about the width of a cell.
More than twice the largest displacement, so that the image never folds over itself."""

GRID_CELLS = 5
"""Cells of a distorted grid along each side of an image."""

STAINS_33 = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in red, green and blue of haematoxylin, eosin and DAB, a stain a row (Ruifrok & Johnston 2001)."""


def stain_change(scales_3: np.ndarray, shifts_3: np.ndarray, grey: bool) -> np.ndarray:
    """Compute the change of a pixel's optical density that scales and shifts the density of each stain.

    Stain densities s follow from optical densities d = s @ STAINS_33; s becomes ``scales_3 * s + shifts_3`` (Tellez et
    al. 2018). A grey image shows no stains, and separate ones would colour it: there density as a whole is scaled and
    shifted, by the means over stains and channels.

    Returns:
        (3, 4) float64, as ``cv2.transform`` takes it: the new densities are ``change[:, :3] @ d + change[:, 3]``.
    """
    stains_33 = STAINS_33 / np.linalg.norm(STAINS_33, axis=1, keepdims=True)
    mixing_33 = (np.linalg.inv(stains_33) * scales_3) @ stains_33  # for densities in rows
    shift_3 = shifts_3 @ stains_33
    if grey:
        mixing_33, shift_3 = np.eye(3) * scales_3.mean(), np.full(3, shift_3.mean())
    return np.column_stack([mixing_33.T, shift_3])


def change_density(image_HWC: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Change the optical density of each pixel of ``image_HWC`` (uint8, RGB) by a (3, 4) matrix.

    The density of a value v is -ln((v + 1) / 256), which is finite for black and 0 for white.
    """
    density_of_value = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    density_HWC = cv2.transform(density_of_value[image_HWC], change)
    light_HWC = cv2.exp(-density_HWC) * 256 - 1
    return np.rint(light_HWC, out=light_HWC).clip(0, 255).astype(np.uint8)


def grid_positions(length: int, widths: np.ndarray) -> np.ndarray:
    """Compute where each pixel along a side is read from when equal grid cells take the relative ``widths`` instead.

    Piecewise linear, and rising where all widths are positive: nothing folds. The first cell starts and the last one
    ends where the image does.

    Returns:
        (length,) float32, coordinates of pixel centres.
    """
    edges = np.concatenate([[0.0], np.cumsum(widths)])
    centres = np.interp(np.arange(length) + 0.5, np.linspace(0, length, len(edges)), edges * (length / edges[-1]))
    return (centres - 0.5).astype(np.float32)


def through_four_channels(warp: Callable[[np.ndarray], np.ndarray], image_HWC: np.ndarray) -> np.ndarray:
    """Apply ``warp``, which treats each channel by itself, to ``image_HWC``.

    OpenCV's linear interpolation takes half the time with four channels that it takes with three.
    """
    return cv2.cvtColor(warp(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2RGBA)), cv2.COLOR_RGBA2RGB)


class Remapping:
    """A distortion of images and planes by ``map_x`` and ``map_y`` (H, W).

    albumentations copies both maps into one first, once for the image and once for each plane.
    """

    fill: tuple[float, ...] | float

    def apply(self, img: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any) -> np.ndarray:
        def warp(image: np.ndarray) -> np.ndarray:
            maps = map_x, map_y
            return cv2.remap(image, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=self.fill)

        return through_four_channels(warp, img)

    def apply_to_mask(self, mask: np.ndarray, map_x: np.ndarray, map_y: np.ndarray, **params: Any) -> np.ndarray:
        return cv2.remap(mask, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def add_noise(image_HWC: np.ndarray, noise_HW: np.ndarray) -> np.ndarray:
    """Add ``noise_HW`` (float), truncated to whole numbers, to all channels of ``image_HWC`` (uint8)."""
    whole_HW = noise_HW.astype(np.int16)
    return cv2.add(image_HWC, cv2.merge([whole_HW] * image_HWC.shape[2]), dtype=cv2.CV_8U)


def _affine(A: ModuleType, reach: Reach) -> Any:
    class QuickAffine(A.Affine):  # type: ignore[name-defined]
        """albumentations' transform: the same result, sooner."""

        def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
            return through_four_channels(partial(super().apply, **params), img)

    return QuickAffine(
        scale=(1 / (1 + reach["scale"]), 1 + reach["scale"]),
        balanced_scale=True,
        keep_ratio=True,
        rotate=(-reach["rotate"], reach["rotate"]),
        shear=(-reach["shear"], reach["shear"]),
        p=PROBABILITY["affine"],
    )


def _elastic(A: ModuleType, reach: Reach) -> Any:
    class SplineElastic(Remapping, A.ElasticTransform):  # type: ignore[name-defined]
        """Elastic deformation from random displacements at knots, with a smooth surface through them.

        albumentations blurs a field of noise as large as the image, which takes six times as long.
        """

        def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, np.ndarray]:
            height, width = params["shape"][:2]
            knots = 2, height // ELASTIC_SPACING + 2, width // ELASTIC_SPACING + 2
            shifts = self.random_generator.uniform(-self.alpha, self.alpha, knots).astype(np.float32)
            map_y, map_x = (cv2.resize(shift, (width, height), interpolation=cv2.INTER_CUBIC) for shift in shifts)
            map_y += np.arange(height, dtype=np.float32)[:, None]
            map_x += np.arange(width, dtype=np.float32)
            return {"map_x": map_x, "map_y": map_y}

    return SplineElastic(alpha=reach["displacement"], p=PROBABILITY["elastic"])


def _grid(A: ModuleType, reach: Reach) -> Any:
    class PixelGrid(Remapping, A.GridDistortion):  # type: ignore[name-defined]
        """Grid distortion of images of any size.

        albumentations divides by zero where a side has fewer pixels than the grid has cells, and repeats a pixel at
        each edge of the grid.
        """

        def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, np.ndarray]:
            widths = 1 + self.random_generator.uniform(*self.distort_limit, (2, self.num_steps))
            rows, columns = (
                grid_positions(length, widths_of_side)
                for length, widths_of_side in zip(params["shape"][:2], widths, strict=True)
            )
            map_x, map_y = np.meshgrid(columns, rows)
            return {"map_x": map_x, "map_y": map_y}

    limit = -reach["grid"], reach["grid"]
    return PixelGrid(num_steps=GRID_CELLS, distort_limit=limit, p=PROBABILITY["grid"])


def _color(A: ModuleType, reach: Reach) -> Any:
    # All of it leaves grey images grey, as do stain and noise below: many microscopes know no colour.
    jitter = {name: (1 - reach[name], 1 + reach[name]) for name in ("brightness", "contrast", "saturation")}
    return A.ColorJitter(**jitter, hue=(-reach["hue"], reach["hue"]), p=PROBABILITY["color"])


def _stain(A: ModuleType, reach: Reach) -> Any:
    class StainJitter(A.ImageOnlyTransform):  # type: ignore[name-defined]
        """Random density of each stain, by :func:`stain_change`.

        albumentations' HEStain keeps two components of a pixel's colour: it colours grey images, changes all others
        even at scale 1 and shift 0, and fails on white or black ones when it estimates the stains.
        """

        def get_params_dependent_on_data(self, params: dict, data: dict) -> dict[str, np.ndarray]:
            red_HW, green_HW, blue_HW = np.moveaxis(data["image"], 2, 0)
            grey = np.array_equal(red_HW, green_HW) and np.array_equal(red_HW, blue_HW)
            scales_3 = 1 + self.random_generator.uniform(-reach["stain_scale"], reach["stain_scale"], 3)
            shifts_3 = self.random_generator.uniform(-reach["stain_shift"], reach["stain_shift"], 3)
            return {"change": stain_change(scales_3, shifts_3, grey)}

        def apply(self, img: np.ndarray, change: np.ndarray, **params: Any) -> np.ndarray:
            return change_density(img, change)

    return StainJitter(p=PROBABILITY["stain"])


def _blur(A: ModuleType, reach: Reach, probability: float = PROBABILITY["blur"]) -> Any:
    return A.GaussianBlur(blur_limit=0, sigma_limit=(0.0, reach["blur"]), p=probability)


def _noise(A: ModuleType, reach: Reach, probability: float = PROBABILITY["noise"]) -> Any:
    class QuickNoise(A.GaussNoise):  # type: ignore[name-defined]
        """albumentations' transform: the same result, sooner. It adds the noise to each channel as float."""

        def apply(self, img: np.ndarray, noise_map: np.ndarray, **params: Any) -> np.ndarray:
            return add_noise(img, noise_map[:, :, 0])

    return QuickNoise(std_range=(0.0, reach["noise"]), per_channel=False, p=probability)


def _focus(A: ModuleType, reach: Reach) -> Any:
    return A.OneOf([_blur(A, reach, 1.0), _noise(A, reach, 1.0)], p=PROBABILITY["focus"])


STEPS: dict[str, Callable[[ModuleType, Reach], Any]] = {
    "affine": _affine,
    "elastic": _elastic,
    "grid": _grid,
    "color": _color,
    "stain": _stain,
    "focus": _focus,
    "blur": _blur,
    "noise": _noise,
}
"""Builder of each step. ``focus`` is blur or noise."""


@cache
def albumentations_module() -> ModuleType:
    """Import albumentations without the network request that it makes otherwise."""
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
