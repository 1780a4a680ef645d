"""A results file of anybody's, checked against a list of test images as strictly as a leaderboard may."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.data.rle import decode_window
from cellseg.data.testset import TestImage
from cellseg.errors import UserError
from cellseg.files import read_json
from cellseg.names import counted

MOST_PROBLEMS = 20
"""Problems that are shown; the others are counted."""
COCO_LIMIT = 100
"""Detections per image and class that COCO's metrics count."""


@dataclass(frozen=True)
class ResultsSummary:
    """What a sound results file holds."""

    num_detections: int
    per_image: tuple[int, float, int]
    """Fewest, median and most detections in a listed image."""
    without: tuple[str, ...]
    """Names of the listed images that have none."""
    beyond_limit: int
    """Pairs of image and class with more detections than COCO's metrics count."""

    def describe(self) -> list[str]:
        """Say it in lines."""
        least, median, most = self.per_image
        lines = [f"{counted(self.num_detections, 'detection')}, per image {least} to {most}, median {median:g}"]
        if self.without:
            some = ", ".join(self.without[:5]) + (", ..." if len(self.without) > 5 else "")
            lines.append(f"note: {counted(len(self.without), 'image')} without any: {some}")
        if self.beyond_limit:
            lines.append(
                f"note: in {counted(self.beyond_limit, 'case')} an image has more than {COCO_LIMIT} detections of a "
                "class: COCO's metrics count those of the highest scores"
            )
        return lines


def check_results_file(
    path: Path, images: Sequence[TestImage], category_ids: Sequence[int] | None = None
) -> ResultsSummary:
    """Check every record of a results file.

    Args:
        images: the list of test images.
        category_ids: those of the annotations. None: any.

    Raises:
        UserError: no such file, no list of records, or what is wrong with each of them.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise UserError(f"{path}: must be a list of records, but got {_kind(records)}. COCO results are a plain list.")
    problems = list(_problems(path, records, images, category_ids))
    if len(problems) > MOST_PROBLEMS:
        rest = len(problems) - MOST_PROBLEMS
        problems = [*problems[:MOST_PROBLEMS], f"{path}: more of this kind: {counted(rest, 'problem')}."]
    if problems:
        raise UserError(*problems)
    counts = Counter(record["image_id"] for record in records)
    of_class = Counter((record["image_id"], record["category_id"]) for record in records)
    each = [counts[image.image_id] for image in images]
    return ResultsSummary(
        num_detections=len(records),
        per_image=(min(each, default=0), float(np.median(each)) if each else 0.0, max(each, default=0)),
        without=tuple(image.file_name for image in images if not counts[image.image_id]),
        beyond_limit=sum(count > COCO_LIMIT for count in of_class.values()),
    )


def _problems(
    path: Path, records: list[Any], images: Sequence[TestImage], category_ids: Sequence[int] | None
) -> Iterator[str]:
    by_id = {image.image_id: image for image in images}
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        where = f"{path}: record {index}"
        found = list(_record_problems(record, by_id, category_ids))
        yield from (f"{where}: {problem}" for problem in found)
        if not found:
            identity = json.dumps([record[key] for key in ("image_id", "category_id", "segmentation")], sort_keys=True)
            earlier = first.setdefault(identity, index)
            if earlier != index:
                yield f"{where}: must be of another mask, image or class, but got those of record {earlier}. Remove it."


def _record_problems(record: Any, by_id: dict[int, TestImage], category_ids: Sequence[int] | None) -> Iterator[str]:
    if not isinstance(record, dict):
        yield f"must be a mapping, but got {_kind(record)}."
        return
    wanted = ("image_id", "category_id", "segmentation", "score")
    if missing := [key for key in wanted if key not in record]:
        yield f"must have {', '.join(wanted)}, but got none of {', '.join(missing)}."
        return
    image = by_id.get(record["image_id"]) if _is_whole(record["image_id"]) else None
    if image is None:
        yield f"image_id must be one of the {len(by_id)} listed images, but got {record['image_id']!r}."
    category = record["category_id"]
    if not _is_whole(category) or (category_ids is not None and category not in category_ids):
        known = "a whole number" if category_ids is None else f"one of {', '.join(map(str, category_ids))}"
        yield f"category_id must be {known}, but got {category!r}."
    if not _is_number(record["score"]) or not 0 <= record["score"] <= 1:
        yield f"score must be between 0 and 1, but got {record['score']!r}."
    yield from _mask_problems(record["segmentation"], image)
    box = record.get("bbox")
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        yield f"bbox must be four finite numbers x, y, width, height, but got {box!r}."


def _mask_problems(rle: Any, image: TestImage | None) -> Iterator[str]:
    counts = rle.get("counts") if isinstance(rle, dict) else None
    size = rle.get("size") if isinstance(rle, dict) else None
    if not isinstance(counts, str) or not (isinstance(size, list) and len(size) == 2 and all(map(_is_whole, size))):
        yield f"segmentation must be an RLE with size [height, width] and counts as text, but got {_kind(rle)}."
        return
    if image is not None and size != [image.height, image.width]:
        yield f"segmentation must have the size [{image.height}, {image.width}] of {image.file_name}, but got {size}."
        return
    try:
        _, _, mask_hw = decode_window(rle)
    except (ValueError, OverflowError):  # UnicodeEncodeError is a ValueError
        yield "counts of the segmentation must be whole and fill the image, but got others. Encode the mask again."
        return
    if not mask_hw.any():
        yield "the mask must have a pixel, but got none. Leave the record out."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _kind(value: Any) -> str:
    return {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}.get(type(value), repr(value)[:40])
