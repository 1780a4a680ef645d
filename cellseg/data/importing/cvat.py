"""CVAT's XML: polygons, masks and ellipses of all images of a task in one file ("CVAT for images 1.1")."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellseg.data.files_below import FilesBelow
from cellseg.data.headers import require_size
from cellseg.data.importing.listing import Item, Listing, note_unannotated
from cellseg.data.importing.options import ImportOptions, require_extra
from cellseg.data.importing.shapes import Bitmap, Ellipse, Outlines, Shape, Union, ring_of
from cellseg.errors import UserError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_NO_AREA = ("box", "polyline", "points", "cuboid", "skeleton", "tag")
_HEAD_BYTES = 4096


def find(files: FilesBelow) -> list[Path]:
    """List the XML files that CVAT wrote."""
    return [path for path in files.with_suffix(".xml") if _looks_right(path)]


def read(files: FilesBelow, options: ImportOptions) -> Listing:
    """List the images of CVAT's files; shapes of one group and label are one cell."""
    require_extra("defusedxml", str(files.root))
    listing = Listing()
    labels: dict[str, None] = {}
    readers: dict[Path, Path] = {}
    for path in find(files):
        try:
            tree = _parse(path)
        except UserError as error:
            listing.problems += error.problems
            continue
        labels |= dict.fromkeys(
            name for node in tree.iterfind(".//labels/label/name") if (name := (node.text or "").strip())
        )
        if tree.find("track") is not None:
            listing.problems.append(
                f"{path}: must be annotations of images, but got those of a video. Export 'CVAT for images 1.1' "
                "or COCO."
            )
        for element in tree.iterfind("image"):
            try:
                item = _read_image(element, path, files, listing)
            except UserError as error:
                listing.problems += error.problems
                continue
            assert isinstance(item.image, Path)
            if item.image in readers:
                listing.problems.append(
                    f"{path}: must be the only file of its image {item.image.name}, but got {readers[item.image].name} "
                    "too. Remove one."
                )
                continue
            readers[item.image] = path
            listing.items.append(item)
    present = {class_name for item in listing.items for class_name, _ in item.cells}
    listing.class_names = [*(name for name in labels), *sorted(present - set(labels))]
    note_unannotated(listing, files, "an entry in CVAT's file")
    return listing


def _looks_right(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return b"<annotations" in head


def _parse(path: Path) -> "Element":
    import defusedxml.ElementTree as Xml
    from defusedxml import DefusedXmlException

    try:
        return Xml.parse(path).getroot()
    except (Xml.ParseError, DefusedXmlException, OSError, ValueError) as error:
        raise UserError(f"{path}: must be valid XML without entities, but got: {error}. Export it again.") from error


def _read_image(element: "Element", path: Path, files: FilesBelow, listing: Listing) -> Item:
    name = element.get("name", "")
    subset = element.get("subset")
    places = [*([f"images/{subset}/{name}"] if subset else []), f"images/{name}", name]
    image = next((found for place in places if (found := files.find_named(place, path.parent))), None)
    if image is None:
        raise UserError(f"{path}: must lie beside its images or their folder images, but got no {name}. Copy it there.")
    size = _whole(element.get("height")), _whole(element.get("width"))
    problems = []
    groups: dict[tuple[str, int, str], list[Shape]] = defaultdict(list)
    for index, shape in enumerate(element):
        if shape.tag in _NO_AREA:
            listing.skipped[f"shapes of type {shape.tag}, which have no outline"] += shape.tag != "tag"
            continue
        where, label = f"{path}: {name}: {shape.tag} {index}", (shape.get("label") or "").strip()
        try:
            if not label:
                raise ValueError("must have a label, but got none.")
            cell = _shape(shape)
        except (ValueError, TypeError) as error:
            problems.append(f"{where}: {error}")
            continue
        group = _whole(shape.get("group_id")) or 0
        groups[("group", group, label) if group else ("alone", index, label)].append(cell)
    if problems:
        raise UserError(*problems)
    cells = tuple(
        (label, shapes[0] if len(shapes) == 1 else Union(tuple(shapes))) for (_, _, label), shapes in groups.items()
    )
    return Item(image, cells, (path,), size)


def _shape(element: "Element") -> Shape:
    """One shape.

    Raises:
        ValueError: values that it cannot have; the message follows on ``where: ``.
    """
    match element.tag:
        case "polygon":
            points = [pair.split(",") for pair in (element.get("points") or "").split(";") if pair.strip()]
            return Outlines(((ring_of(points),),))
        case "ellipse":
            x, y, rx, ry = _numbers(element, "cx", "cy", "rx", "ry")
            (turn,) = _numbers(element, "rotation") if element.get("rotation") else (0.0,)
            return Ellipse((x, y), (rx, ry), turn)
        case "mask":
            return Bitmap(*_decode_mask(element))
    raise ValueError(f"must be a polygon, mask or ellipse, but got {element.tag}. Draw it as a polygon.")


def _decode_mask(element: "Element") -> tuple[np.ndarray, tuple[int, int]]:
    """A mask: lengths of runs of background and cell, row by row, inside its box."""
    left, top, width, height = (int(value) for value in _numbers(element, "left", "top", "width", "height"))
    require_size(Path("mask"), height, width)
    runs = [int(run) for run in (element.get("rle") or "").split(",") if run.strip()]
    if min(width, height) < 1 or min(runs, default=0) < 0 or sum(runs) != width * height:
        raise ValueError(f"rle must add up to the {width} x {height} pixels of its box, but got {sum(runs)}.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(height, width), (top, left)


def _numbers(element: "Element", *names: str) -> Iterator[float]:
    for name in names:
        try:
            value = float(element.get(name, ""))
        except ValueError:
            value = float("nan")
        if not abs(value) < 1e7:
            raise ValueError(f"{name} must be a number of pixels, but got '{element.get(name)}'.")
        yield value


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None
