"""Cells whose pixels are known, for folders as other tools write them."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import shapely
import tifffile

from cellseg.data.sample import Sample

HEIGHT, WIDTH = 48, 64

POLYGONS: dict[str, list[tuple[float, float]]] = {
    "tumor": [(4.13, 3.27), (20.4, 5.1), (22.55, 18.25), (12.3, 24.15), (3.35, 15.21)],
    "immune cell": [
        (30.2, 10.1),
        (44.1, 8.35),
        (50.15, 20.3),
        (41.3, 17.2),
        (33.05, 26.4),
    ],  # not convex, and a class with a space
}
"""Class -> outline of its cell, x and y in pixels. No centre of a pixel is on an edge, where tools differ."""


def image_of(seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def pixels_of(geometry: Any) -> np.ndarray:
    """The pixels whose centres are in a shapely geometry or a list of points, (H, W) bool."""
    if isinstance(geometry, list):
        geometry = shapely.Polygon(geometry)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return shapely.contains_xy(geometry, columns + 0.5, rows + 0.5)


def labels_of() -> np.ndarray:
    """(H, W) uint16: the cells of :data:`POLYGONS` with ids that have gaps."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, outline in zip((3, 700), POLYGONS.values(), strict=True):
        ids[pixels_of(outline)] = number
    return ids


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".png":
        path.write_bytes(imagecodecs.png_encode(image_of(seed)))
    elif path.suffix.lower() in (".jpg", ".jpeg"):
        path.write_bytes(imagecodecs.jpeg_encode(image_of(seed)))
    else:
        tifffile.imwrite(path, image_of(seed), photometric="rgb")
    return path


def write_mask(path: Path, ids: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = labels_of() if ids is None else ids
    if path.suffix.lower() == ".png":
        path.write_bytes(imagecodecs.png_encode(ids))
    else:
        tifffile.imwrite(path, ids)
    return path


def cells_of(sample: Sample, class_names: tuple[str, ...]) -> dict[str, list[np.ndarray]]:
    """Class -> masks (H, W) bool of its cells."""
    found: dict[str, list[np.ndarray]] = {}
    for number, label in enumerate(sample.labels_N, start=1):
        mask = (sample.planes_PHW == number).any(axis=0)
        found.setdefault(class_names[label - 1], []).append(mask)
    return found


def assert_cells(cells: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    assert {name: len(masks) for name, masks in cells.items()} == {name: len(masks) for name, masks in expected.items()}
    for name, masks in expected.items():
        for mask, found in zip(masks, cells[name], strict=True):
            np.testing.assert_array_equal(found, mask, err_msg=name)


def expected_cells() -> dict[str, list[np.ndarray]]:
    return {name: [pixels_of(outline)] for name, outline in POLYGONS.items()}
