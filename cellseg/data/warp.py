"""Affine warps of an image, or of a crop placed so that the image fills it.

Cropping before warping leaves empty corners although the image has those pixels: 11 % of a crop on average, and a third
in one crop of ten. Here the warp itself cuts the crop out of the image, so the cost depends on the crop's size only.

Shape suffixes: P planes, H height, W width, C colour channels, 33 a matrix for (x, y, 1) in pixels.
"""

import random
from functools import partial
from typing import Any

import cv2
import numpy as np

from cellseg.data.transforms import PROBABILITY, through_four_channels


def draw_affine(transform: Any, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray | None:
    """Draw a random affine matrix_33 about the centre of an image of ``size`` (height, width), which maps source to
    target coordinates; None if the draw skips the warp.

    ``transform``: made by ``STEPS["affine"]``; holds the ranges.
    """
    chance = random.Random(int(rng.integers(2**63)))
    if chance.random() >= PROBABILITY["affine"]:
        return None
    transform.set_random_state(rng, chance)
    return transform.get_params_dependent_on_data({"shape": size}, {})["matrix"]


def magnification(matrix_33: np.ndarray) -> float:
    """Return the factor by which areas grow."""
    return abs(float(np.linalg.det(matrix_33[:2, :2])))


def place_crop(
    matrix_33: np.ndarray, size: tuple[int, int], crop: int, side: int, rng: np.random.Generator
) -> np.ndarray:
    """Move ``matrix_33``, drawn about the centre of a square, to a random place of an image.

    Along each axis, the place is drawn from those where the middle ``crop`` pixels of the square show nothing from
    outside the image; if the image is too small for that, from those that show all of it.

    Args:
        matrix_33: see :func:`draw_affine`, for a square of ``side``.
        size: (height, width) of the image.

    Returns:
        The matrix from image to square coordinates.
    """
    back_22 = np.linalg.inv(matrix_33[:2, :2])
    reach_2 = np.abs(back_22).sum(axis=1) * crop / 2  # of the crop's corners from its centre, along x and y
    middle_2 = np.array(
        [rng.uniform(*sorted((reach, length - reach))) for reach, length in zip(reach_2, size[::-1], strict=True)]
    )
    shift_33 = np.eye(3)
    # Pixel i covers [i, i + 1) of a length, and its centre has the coordinate i.
    shift_33[:2, 2] = side / 2 - middle_2
    return matrix_33 @ shift_33


def warp(
    image_HWC: np.ndarray,
    planes_PHW: np.ndarray,
    matrix_33: np.ndarray,
    size: tuple[int, int],
    fill: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Warp image and planes by ``matrix_33`` into ``size`` (height, width).

    Pixels from outside the image get the colour ``fill`` and no cell.
    """
    to = partial(
        cv2.warpAffine, M=matrix_33[:2], dsize=(size[1], size[0]), borderMode=cv2.BORDER_CONSTANT
    )  # cv2 takes (width, height)
    image_HWC = through_four_channels(lambda image: to(image, flags=cv2.INTER_LINEAR, borderValue=fill), image_HWC)
    return image_HWC, np.stack([to(plane_HW, flags=cv2.INTER_NEAREST, borderValue=0) for plane_HW in planes_PHW])
