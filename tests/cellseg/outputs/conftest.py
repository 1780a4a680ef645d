"""Discs and odd masks as detections of an image."""

from pathlib import Path

import numpy as np
import pytest
from shapes import detections, disc

from cellseg.inference.outputs.cells import ImageCells


@pytest.fixture
def odd_masks() -> list[np.ndarray]:
    """A disc, a ring, two pixels that touch in a corner, two separate parts, a single pixel, and a cell at the
    border; 40 x 50 px, disjoint."""
    size = (40, 50)
    ring = disc(*size, 10, 30, 7) & ~disc(*size, 10, 30, 3)
    corner, parts, single, border = (np.zeros(size, bool) for _ in range(4))
    corner[25, 5] = corner[26, 6] = True
    parts[30:33, 20:24] = parts[35:38, 22:25] = True
    single[20, 40] = True
    border[33:, 44:] = True
    return [disc(*size, 10, 10, 6), ring, corner, parts, single, border]


@pytest.fixture
def image_cells(odd_masks) -> ImageCells:
    """The odd masks as cells of two classes of an image."""
    found = detections(*odd_masks, labels=[1, 2, 1, 2, 1, 2])
    image_HWC = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return ImageCells.of("slide", Path("folder/slide.png"), image_HWC, found, ("nucleus", "Zelle, groß"), (3, 7))
