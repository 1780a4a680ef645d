"""VGG Image Annotator: a project, a JSON or a CSV file of the regions of all images."""

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.data.files_below import FilesBelow, mentions
from cellseg.data.importing.listing import Item, Listing, note_unannotated
from cellseg.data.importing.options import ImportOptions
from cellseg.data.importing.shapes import Ellipse, Outlines, Shape, rectangle, ring_of
from cellseg.errors import UserError
from cellseg.files import read_json

_NO_AREA = ("point", "polyline", "line")
_CSV_HEADER = "region_shape_attributes"
_USUAL_KEYS = ("class", "label", "type", "name", "category", "cell_type", "celltype", "cell")

Region = tuple[dict, dict]
"""Attributes of a region's shape, and those that its annotator gave it."""


def find(files: FilesBelow) -> list[Path]:
    """List the files that VIA wrote."""
    found = [path for path in files.with_suffix(".json") if mentions(path, "regions", "filename", "shape_attributes")]
    return sorted([*found, *(path for path in files.with_suffix(".csv") if _has_header(path))])


def read(files: FilesBelow, options: ImportOptions) -> Listing:
    """List the images of VIA's files. A region's class is its only attribute, or the one of a usual name."""
    listing = Listing()
    regions_of: dict[Path, list[tuple[str, Region]]] = {}
    paths_of: dict[Path, Path] = {}
    for path in find(files):
        try:
            entries = dict(_read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path))
        except UserError as error:
            listing.problems += error.problems
            continue
        for name, regions in entries.items():
            image = files.find_named(name, path.parent)
            if image is None:
                listing.problems.append(f"{path}: must lie beside its images, but got no {name}. Copy it there.")
            elif image in paths_of:
                listing.problems.append(
                    f"{path}: must be the only file of its image {name}, but got {paths_of[image].name} too. "
                    "Remove one."
                )
            else:
                paths_of[image] = path
                regions_of[image] = [
                    (f"{path}: {name}: region {index}", region) for index, region in enumerate(regions)
                ]
    everything = [region for regions in regions_of.values() for _, region in regions]
    key, problem = _class_key(everything, options, files)
    listing.problems += [problem] if problem else []
    for image, placed in regions_of.items():
        cells = []
        for where, (shape, attributes) in placed:
            if shape.get("name") in _NO_AREA:
                listing.skipped[f"regions of type {shape['name']}, which enclose no cell"] += 1
                continue
            try:
                cells.append((_class_name(attributes, key) or options.class_name, _shape(shape)))
            except ValueError as error:
                listing.problems.append(f"{where}: {error}")
        listing.items.append(Item(image, tuple(cells), (paths_of[image],)))
    note_unannotated(listing, files, "an entry in VIA's file")
    return listing


def _has_header(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return _CSV_HEADER in file.readline(4096)
    except (OSError, UnicodeDecodeError):
        return False


def _read_json(path: Path) -> Iterator[tuple[str, list[Region]]]:
    content = read_json(path)
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of images. Export the annotations as JSON.")
    for key, entry in content.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
            raise UserError(f"{path}: {key}: must have a filename, but got {str(entry)[:60]}.")
        regions = entry.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1 numbers them
        pairs = [
            (region.get("shape_attributes"), region.get("region_attributes"))
            if isinstance(region, dict)
            else (None, None)
            for region in regions
        ]
        yield entry["filename"], [(_mapping(shape), _mapping(attributes)) for shape, attributes in pairs]


def _read_csv(path: Path) -> Iterator[tuple[str, list[Region]]]:
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: must be a readable CSV file, but got '{error}'. Export it again.") from error
    regions: dict[str, list[Region]] = defaultdict(list)
    problems = []
    for number, row in enumerate(rows, start=2):
        name = row.get("filename") or row.get("#filename") or ""
        if not name:
            problems.append(f"{path}: line {number}: must have a filename, but got none.")
            continue
        try:
            shape = json.loads(row.get(_CSV_HEADER) or "{}")
            attributes = json.loads(row.get("region_attributes") or "{}")
        except (ValueError, RecursionError) as error:
            problems.append(f"{path}: line {number}: attributes must be JSON, but got: {error}.")
            continue
        found = regions[name]
        if shape:  # a row without one is an image without regions
            found.append((_mapping(shape), _mapping(attributes)))
    if problems:
        raise UserError(*problems)
    yield from regions.items()


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _class_key(regions: list[Region], options: ImportOptions, files: FilesBelow) -> tuple[str | None, str | None]:
    """The attribute that holds the class, None without any; and what is wrong where a choice is needed."""
    counts = Counter(
        key for _, attributes in regions for key, value in attributes.items() if value not in ("", {}, None)
    )
    if options.class_key is not None:
        if options.class_key in counts or not regions:
            return options.class_key, None
        known = ", ".join(counts) or "none"
        return None, f"--class-key: must be an attribute of the regions, {known}, but got '{options.class_key}'."
    usual = [key for name in _USUAL_KEYS for key in counts if key.lower() == name]
    if usual or len(counts) <= 1:
        return (usual or [*counts, None])[0], None
    return None, (
        f"{files.root}: one attribute of the regions must be the class, but got {', '.join(counts)}. Name it: "
        "python -m cellseg.data.import_labels SOURCE DEST --class-key NAME"
    )


def _class_name(attributes: dict, key: str | None) -> str | None:
    value = attributes.get(key) if key else None
    if isinstance(value, dict):  # check boxes
        value = "+".join(sorted(name for name, checked in value.items() if checked)) or None
    return str(value).strip() or None if isinstance(value, str | int) else None


def _shape(shape: dict) -> Shape:
    """One shape.

    Raises:
        ValueError: values that it cannot have; the message follows on ``where: ``.
    """
    match shape.get("name"):
        case "polygon" | "polyline":
            xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
            if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
                raise ValueError("a polygon must have as many all_points_x as all_points_y.")
            return Outlines(((ring_of(list(zip(xs, ys, strict=True))),),))
        case "rect":
            x, y, width, height = _numbers(shape, "x", "y", "width", "height")
            return rectangle(x, y, x + width, y + height)
        case "circle":
            x, y, radius = _numbers(shape, "cx", "cy", "r")
            return Ellipse((x, y), (radius, radius))
        case "ellipse":
            x, y, rx, ry = _numbers(shape, "cx", "cy", "rx", "ry")
            return Ellipse((x, y), (rx, ry), float(np.degrees(float(shape.get("theta") or 0))))
    raise ValueError(f"must be a polygon, rect, circle or ellipse, but got {str(shape.get('name'))!r}.")


def _numbers(shape: dict, *names: str) -> Iterator[float]:
    for name in names:
        value = shape.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e7:
            raise ValueError(f"{name} must be a number of pixels, but got {value!r}.")
        yield float(value)
