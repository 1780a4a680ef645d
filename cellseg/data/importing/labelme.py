"""labelme: a JSON file for each image, with shapes in pixels."""

import base64
import binascii
from collections import defaultdict
from pathlib import Path, PureWindowsPath
from typing import Any

import imagecodecs
import numpy as np

from cellseg.data.files_below import FilesBelow, mentions
from cellseg.data.headers import png_size, require_size
from cellseg.data.importing.listing import EmbeddedImage, Item, Listing, note_unannotated
from cellseg.data.importing.options import ImportOptions
from cellseg.data.importing.shapes import Bitmap, Ellipse, Outlines, Shape, Union, rectangle, ring_of
from cellseg.errors import UserError
from cellseg.files import read_json

_IGNORED = ("__ignore__", "_background_")
"""Labels that labelme's own converters give no class."""
_NO_AREA = ("point", "points", "line", "linestrip")
"""Types of shapes that enclose nothing."""


def find(files: FilesBelow) -> list[Path]:
    """List the files that labelme wrote."""
    return [path for path in files.with_suffix(".json") if mentions(path, "shapes", "imagePath")]


def read(files: FilesBelow, options: ImportOptions) -> Listing:
    """List the images of labelme's files; shapes of one group and label are one cell."""
    listing = Listing()
    readers: dict[Path | EmbeddedImage, Path] = {}
    for path in find(files):
        try:
            item = _read_file(path, files, listing)
        except UserError as error:
            listing.problems += error.problems
            continue
        if item.image in readers:
            listing.problems.append(
                f"{path}: must be the only file of its image, but got {readers[item.image].name} too. Remove one."
            )
            continue
        readers[item.image] = path
        listing.items.append(item)
    note_unannotated(listing, files, "a labelme file")
    return listing


def _read_file(path: Path, files: FilesBelow, listing: Listing) -> Item:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{path}: must be a mapping with a list 'shapes'. Is it a labelme file?")
    image = _image(path, content, files)
    problems: list[str] = []
    groups: dict[tuple[Any, str], list[Shape]] = defaultdict(list)
    for index, shape in enumerate(content["shapes"]):
        where = f"{path}: shapes[{index}]"
        if not isinstance(shape, dict) or not isinstance(label := shape.get("label"), str) or not label.strip():
            problems.append(f"{where}: must have a label, but got none. Name its class in labelme.")
            continue
        kind = shape.get("shape_type") or "polygon"
        if label in _IGNORED:
            listing.skipped[f"shapes with the label {label}"] += 1
            continue
        if kind in _NO_AREA:
            listing.skipped[f"shapes of type {kind}, which enclose no cell"] += 1
            continue
        try:
            cell = _shape(kind, shape)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        group = shape.get("group_id")
        groups[("alone", index) if group is None else ("group", str(group)), label.strip()].append(cell)
    if problems:
        raise UserError(*problems)
    cells = tuple(
        (label, shapes[0] if len(shapes) == 1 else Union(tuple(shapes))) for (_, label), shapes in groups.items()
    )
    size = (_length(content.get("imageHeight")), _length(content.get("imageWidth")))
    return Item(image, cells, (path,), size)


def _image(path: Path, content: dict, files: FilesBelow) -> Path | EmbeddedImage:
    name = content.get("imagePath")
    name = name if isinstance(name, str) and name else f"{path.stem}.png"
    if (image := files.find_named(name, path.parent)) is not None:
        return image
    # labelme names the file itself after the image, and keeps a copy of its pixels.
    beside = [image for image in files.images_of_stem(path.stem) if image.parent == path.parent]
    if len(beside) == 1:
        return beside[0]
    if isinstance(content.get("imageData"), str):
        return EmbeddedImage(path, f"{path.stem}{_suffix_of(content['imageData'])}")
    raise UserError(
        f"{path}: must lie beside its image, {PureWindowsPath(name).name}, and has no imageData, but got none. "
        "Copy the image there."
    )


def _suffix_of(text: str) -> str:
    return ".jpg" if text.startswith("/9j/") else ".png"


def _shape(kind: str, shape: dict) -> Shape:
    """One shape.

    Raises:
        ValueError: points that its type cannot have; the message follows on ``where: ``.
    """
    points = shape.get("points")
    if not isinstance(points, list):
        raise ValueError(f"points must be a list, but got {str(points)[:60]}.")
    if kind in ("polygon", "oriented_rectangle", "rotation") or (kind == "rectangle" and len(points) > 2):
        return Outlines(((ring_of(points),),))
    if kind not in ("rectangle", "circle", "mask"):
        raise ValueError(
            f"shape_type must be polygon, rectangle, circle or mask, but got '{kind}'. Draw it as a polygon."
        )
    if len(points) != 2:
        raise ValueError(f"a {kind} must have two points, but got {len(points)}.")
    (x1, y1), (x2, y2), _ = ring_of([*points, points[0]])
    if kind == "rectangle":
        return rectangle(x1, y1, x2, y2)
    if kind == "circle":
        radius = float(np.hypot(x2 - x1, y2 - y1))
        return Ellipse((x1, y1), (radius, radius))
    return Bitmap(_decode_mask(shape.get("mask")), (round(min(y1, y2)), round(min(x1, x2))))


def _decode_mask(text: Any) -> np.ndarray:
    """A mask that labelme stores as a PNG in base64, (h, w) bool."""
    try:
        data = base64.b64decode(text)
        require_size(Path("mask"), *png_size(data))
        mask = imagecodecs.png_decode(data)
    except (TypeError, binascii.Error, ValueError, imagecodecs.PngError) as error:
        raise ValueError(f"mask must be a PNG in base64, but got: {str(error)[:60]}.") from error
    return (mask if mask.ndim == 2 else mask[..., :3].max(axis=2)) > 0


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
