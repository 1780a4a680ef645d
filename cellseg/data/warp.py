"""The affine warp of an image, or of a crop that is placed so that the image fills it.

To crop first and warp then leaves corners that the crop lacks, though the image has them: 11 % of the pixels, and a
third of them in one crop of ten. Here the crop is cut out of the image by the warp itself, so what costs is the crop,
however far around it the warp reaches.

Shape suffixes: P planes, H height, W width, C colour channels, 33 a matrix for (x, y, 1) in pixels.
"""

import random
from functools import partial
from typing import Any

import cv2
import numpy as np

from cellseg.data.transforms import PROBABILITY, through_four_channels


def draw_affine(transform: Any, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray | None:
    """A random affine matrix_33 from places in an image of ``size`` (height, width) to where they go in one of the same
    size, about its centre; None where, by chance, nothing is to be warped.

    ``transform`` is what ``STEPS["affine"]`` made: it holds the ranges.
    """
    chance = random.Random(int(rng.integers(2**63)))
    if chance.random() >= PROBABILITY["affine"]:
        return None
    transform.set_random_state(rng, chance)
    return transform.get_params_dependent_on_data({"shape": size}, {})["matrix"]


def magnification(matrix_33: np.ndarray) -> float:
    """How many times as large areas become."""
    return abs(float(np.linalg.det(matrix_33[:2, :2])))


def place_crop(
    matrix_33: np.ndarray, size: tuple[int, int], crop: int, side: int, rng: np.random.Generator
) -> np.ndarray:
    """``matrix_33`` about the centre of a square, moved to a random place of an image.

    Along each axis the place is drawn from all those where the middle of the square, ``crop`` pixels wide, shows
    nothing from outside of the image, or, where it needs more than there is, all of the image.

    Args:
        matrix_33: see :func:`draw_affine`, for a square of ``side``.
        size: (height, width) of the image.

    Returns:
        The matrix from places in the image to places in the square.
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
    """Image and planes as ``matrix_33`` moves them into ``size`` (height, width).

    What comes from outside of the image has the colour ``fill`` and no cell.
    """
    to = partial(
        cv2.warpAffine, M=matrix_33[:2], dsize=(size[1], size[0]), borderMode=cv2.BORDER_CONSTANT
    )  # cv2 takes (width, height)
    image_HWC = through_four_channels(lambda image: to(image, flags=cv2.INTER_LINEAR, borderValue=fill), image_HWC)
    return image_HWC, np.stack([to(plane_HW, flags=cv2.INTER_NEAREST, borderValue=0) for plane_HW in planes_PHW])
