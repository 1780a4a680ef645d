"""Samples: annotated images, in the one form that all of cellseg uses."""

from dataclasses import dataclass

import numpy as np

MAX_INSTANCES = np.iinfo(np.uint16).max
"""Most cells of one image: planes hold instance numbers as uint16 (OpenCV 4 warps uint16, not int32)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its cells.

    Cells are numbered 1..N over the whole image. ``planes_PHW`` holds these numbers, 0 is background. The cells of one
    plane do not overlap; where two cells overlap they lie in different planes, so nothing is lost, and P stays 1 for
    most images. No mask per cell is ever stacked: see DESIGN in ``docs/design.md``.
    """

    name: str
    """Unique within the data set: the sample folder's name, or the file name without suffix."""
    image_HWC: np.ndarray
    """(H, W, 3) uint8, RGB."""
    planes_PHW: np.ndarray
    """(P, H, W) uint16, P >= 1, values 0..N; every cell lies in exactly one plane and has at least one pixel."""
    labels_N: np.ndarray
    """(N,) int64, the class of cell ``i + 1``, counted from 1. Empty for an image without cells."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image_HWC.shape[0], self.image_HWC.shape[1]
