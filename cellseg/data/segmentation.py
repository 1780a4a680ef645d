"""COCO segmentations: polygons and run-length encodings, decoded into the window that they cover.

Shape suffixes: H height and W width of an image, h and w of a window in it.
"""

import math
import sys
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

FAR = 10
"""A polygon may reach beyond its image by this many times the image's side; what lies outside is cut off."""
MAX_RUN_BITS = 62
"""A run of more bits than this fits no image."""


def decode_segmentation(segmentation: Any, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a COCO segmentation into a mask of the window around it.

    Args:
        segmentation: list of polygons [x1, y1, x2, y2, ...], or an RLE with its counts as list or text.
        height, width: size of the image in pixels.

    Returns:
        (h, w) bool with at least one set pixel, and the (row, column) of its corner in the image.

    Raises:
        ValueError: not a segmentation, or one without a pixel; the message follows on ``where: ``.
    """
    if isinstance(segmentation, list):
        mask_hw, corner = _decode_polygons(segmentation, height, width)
    elif isinstance(segmentation, dict):
        mask_hw, corner = _decode_rle(segmentation, height, width)
    else:
        raise ValueError(f"segmentation must be polygons or an RLE, but got {repr(segmentation)[:60]}.")
    if not mask_hw.any():
        raise ValueError("segmentation must cover a pixel of the image, but covers none. Remove the annotation.")
    return mask_hw, corner


def _decode_polygons(polygons: list, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(_is_number(value) for value in polygon)
        if not numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                "a polygon must be a list of at least three x, y pairs of finite numbers, "
                f"but got {str(polygon)[:60]}. Remove or fix it."
            )
    if not polygons:
        raise ValueError("segmentation must cover a pixel of the image, but is empty. Remove the annotation.")
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    # pycocotools allocates by a polygon's length, and is lost where that exceeds 32 bits.
    for axis, values, size in (("x", xs, width), ("y", ys, height)):
        if min(values) < -FAR * size or max(values) > (1 + FAR) * size:
            worst = min(values) if min(values) < -FAR * size else max(values)
            raise ValueError(
                f"a polygon's {axis} must lie from {-FAR * size} to {(1 + FAR) * size}, around the image's 0 to {size}"
                f", but got {worst:g}. Remove or fix it."
            )
    # A window of whole pixels, a margin wider than the polygons, and never beyond the image: shifted by its corner they
    # are rasterised into exactly the pixels they have in the whole image.
    left, right = _window(min(xs), max(xs), width)
    top, bottom = _window(min(ys), max(ys), height)
    if left >= right or top >= bottom:
        return np.zeros((0, 0), dtype=bool), (0, 0)
    corner = np.array([left, top], dtype=np.float64)
    shifted = [(np.reshape(polygon, (-1, 2)) - corner).ravel().tolist() for polygon in polygons]
    rles = coco_mask.frPyObjects(shifted, bottom - top, right - left)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool), (top, left)


def _window(low: float, high: float, limit: int) -> tuple[int, int]:
    return max(math.floor(low) - 1, 0), min(math.ceil(high) + 2, limit)


def _decode_rle(rle: dict, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    if rle.get("size") != [height, width]:
        raise ValueError(f"RLE size must be that of the image, [{height}, {width}], but got {rle.get('size')}.")
    counts = rle.get("counts")
    runs = _parse_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError(f"RLE counts must be a list of whole numbers or COCO's string, but got {str(counts)[:60]!r}.")
    if sum(runs) != height * width:
        raise ValueError(f"RLE counts must add up to the image's {height * width} pixels, but got {sum(runs)}.")
    # Runs of background and cell alternate, column by column. All cell pixels as indices in that order:
    lengths = np.array(runs[1::2], dtype=np.int64)
    starts = np.cumsum(np.array(runs, dtype=np.int64))[0::2][: len(lengths)]
    first_of_run = np.cumsum(lengths) - lengths
    columns, rows = np.divmod(np.repeat(starts - first_of_run, lengths) + np.arange(lengths.sum()), height)
    if not len(rows):
        return np.zeros((0, 0), dtype=bool), (0, 0)
    top, left = int(rows.min()), int(columns.min())
    mask_hw = np.zeros((rows.max() - top + 1, columns.max() - left + 1), dtype=bool)
    mask_hw[rows - top, columns - left] = True
    return mask_hw, (top, left)


def _parse_counts(text: str) -> list[int] | None:
    """Run lengths from COCO's text form; None if the text is not of that form.

    Each number is written in groups of five bits, lowest first, as characters from '0' on with a sixth bit for "more
    follows"; from the fourth number on it is the difference to the last but one. pycocotools decodes it too, but
    returns uninitialised memory for a damaged text, and always a mask as large as the image.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or shift > MAX_RUN_BITS:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if shift == 0 else None


def _is_number(value: Any) -> bool:
    # Compared, not converted: an integer may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
