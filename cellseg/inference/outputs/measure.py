"""A table of cells: class, score, shape and brightness, by scikit-image's ``regionprops``."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.data.rle import decode_window
from cellseg.files import atomic_path
from cellseg.inference.outputs.cells import ImageCells

SHAPE_COLUMNS = ("area", "centroid_x", "centroid_y", "perimeter", "eccentricity")


def measurements(cells: ImageCells, values_HWS: np.ndarray) -> Iterator[dict[str, Any]]:
    """Measure each cell on its whole mask, also where a better cell covers it in the label image.

    Lengths are in pixels. Centroids count from the centre of the first pixel, as scikit-image does.

    Args:
        values_HWS: (H, W, S) the image's pixels as the file holds them; their means are in its units.
    """
    from skimage.measure import regionprops

    channels = mean_columns(values_HWS.shape[2])
    for index, rle in enumerate(cells.cells.rles):
        top, left, mask_hw = decode_window(rle)
        height, width = mask_hw.shape
        (region,) = regionprops(mask_hw.astype(np.uint8))
        row, column = region.centroid
        own_values_KS = values_HWS[top : top + height, left : left + width][mask_hw]
        means_S = own_values_KS.mean(axis=0, dtype=np.float64).tolist()
        yield {
            "id": index + 1,
            "class": cells.class_name(index),
            "score": round(float(cells.cells.scores_N[index]), 6),
            "area": int(region.area),
            "centroid_x": round(column + left, 3),
            "centroid_y": round(row + top, 3),
            "perimeter": round(float(region.perimeter), 3),
            "eccentricity": round(float(region.eccentricity), 6),
            **{name: round(mean, 6) for name, mean in zip(channels, means_S, strict=True)},
        }


def columns(num_channels: int) -> list[str]:
    """Name the columns of an image's table, in order."""
    return ["id", "class", "score", *SHAPE_COLUMNS, *mean_columns(num_channels)]


def mean_columns(num_channels: int) -> list[str]:
    """Name the columns of the mean intensities: one of a grey image, one per channel of another."""
    if num_channels == 1:
        return ["mean_intensity"]
    return [f"mean_intensity_{channel}" for channel in range(num_channels)]


def write_table(path: Path, header: Sequence[str], rows: Iterator[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically; an image without cells gives a header only."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def join_tables(path: Path, tables: Sequence[tuple[str, Path]]) -> None:
    """Join the tables of several images into one, with the image's name in the first column.

    Args:
        tables: (image, its table). Columns that an image lacks are empty.
    """
    header: dict[str, None] = {"image": None}
    for _, table in tables:
        with table.open(newline="", encoding="utf-8") as file:
            header |= dict.fromkeys(next(csv.reader(file)))

    def rows() -> Iterator[dict[str, Any]]:
        for name, table in tables:
            with table.open(newline="", encoding="utf-8") as file:
                yield from ({"image": name, **row} for row in csv.DictReader(file))

    write_table(path, [*header], rows())
