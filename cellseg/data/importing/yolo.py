"""YOLO's text files: a line for each cell, its class number and its outline as shares of the image's sides."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.data.files_below import FilesBelow, image_stem
from cellseg.data.importing.listing import Item, Listing, some
from cellseg.data.importing.options import ImportOptions
from cellseg.data.importing.shapes import Outlines, Window
from cellseg.errors import UserError, raise_all
from cellseg.files import read_yaml
from cellseg.names import counted

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LINE = re.compile(rf"\d+(?:\s+{_NUMBER}){{4,}}")
_NO_LABELS = re.compile(r"(?i)classes|names|obj|readme.*|requirements|.*_outlines|train|val|valid|test|license")


@dataclass(frozen=True)
class RelativeOutline:
    """An outline in shares of the image's width and height."""

    ring_N2: np.ndarray
    """(N, 2) float64: x, y."""

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """See :class:`cellseg.data.importing.shapes.Shape`."""
        yield from Outlines(((self.ring_N2 * [width, height],),)).masks(height, width)


def find(files: FilesBelow) -> list[Path]:
    """List the label files: text of class numbers and outlines, or empty, with an image of the same name."""
    candidates = [path for path in files.with_suffix(".txt") if not _NO_LABELS.fullmatch(path.stem)]
    known = {image_stem(image) for image in files.images}
    named = [path for path in candidates if path.stem in known]
    filled = [path for path in named if _looks_right(path)]
    return [path for path in named if path in set(filled) or _is_empty(path)] if filled else []


def read(files: FilesBelow, options: ImportOptions) -> Listing:
    """List the images with YOLO's labels. An image in a folder of labelled ones without a file has no cells."""
    listing = Listing()
    labels = find(files)
    names, source = _class_names(files)
    used: set[int] = set()
    outlines_of: dict[Path, list[tuple[int, RelativeOutline]]] = {}
    path_of: dict[Path, Path] = {}
    boxes = 0
    for path in labels:
        try:
            image = _image(path, files)
            outlines, boxes_here = _read_file(path)
        except UserError as error:
            listing.problems += error.problems
            continue
        boxes += boxes_here
        outlines_of[image], path_of[image] = outlines, path
        used |= {number for number, _ in outlines}
    if boxes and not any(outlines_of.values()):
        listing.problems.append(
            f"{files.root}: YOLO's labels must hold outlines, but got {boxes} boxes and none. Export them for "
            "segmentation."
        )
    elif boxes:
        listing.skipped["boxes, which have no outline"] += boxes
    unknown = sorted(number for number in used if names and number not in names)
    if unknown:
        listing.problems.append(
            f"{source}: must name every class, but got none for {', '.join(map(str, unknown))}. Add their names."
        )
    names = names or {number: f"class{number}" for number in sorted(used)}
    folders = {image.parent for image in outlines_of}
    background = [image for image in files.images if image.parent in folders and image not in outlines_of]
    if background:
        shown = some([files.relative(path) for path in background])
        listing.notes.append(
            f"{files.root}: taken as free of cells: {counted(len(background), 'image')} without a label file: {shown}."
        )
    for image in (*outlines_of, *background):
        cells = tuple((names.get(number, ""), outline) for number, outline in outlines_of.get(image, []))
        more = [path for path in (path_of.get(image), source) if path is not None]
        listing.items.append(Item(image, cells, tuple(more)))
    listing.category_ids, listing.class_names = tuple(sorted(names)), tuple(names[number] for number in sorted(names))
    return listing


def _looks_right(path: Path) -> bool:
    """Whether a file begins with a line of a class and an outline or a box."""
    try:
        with path.open(encoding="utf-8") as file:
            line = next((line.strip() for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return False
    return bool(_LINE.fullmatch(line))


def _is_empty(path: Path) -> bool:
    return path.stat().st_size == 0 or not path.read_bytes().strip()


def _image(path: Path, files: FilesBelow) -> Path:
    """The image of a label file: beside it, or where ``labels`` in its path is ``images``."""
    candidates = files.images_of_stem(path.stem)
    beside = [image for image in candidates if image.parent == path.parent]
    parts = [("images" if part.lower() == "labels" else part) for part in path.parent.relative_to(files.root).parts]
    mirrored = [image for image in candidates if image.parent == files.root.joinpath(*parts)]
    found = beside or mirrored or candidates
    if len(found) != 1:
        raise UserError(
            f"{path}: must have one image of its name, but got {' and '.join(map(files.relative, found[:3]))}. Put it "
            "into a folder images beside labels."
        )
    return found[0]


def _read_file(path: Path) -> tuple[list[tuple[int, RelativeOutline]], int]:
    """The class and outline of each line, and how many lines are boxes."""
    outlines, problems, boxes = [], [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}: line {number}"
        if not _LINE.fullmatch(line.strip()):
            problems.append(f"{where}: must be a class number and x, y pairs, but got '{line.strip()[:60]}'.")
        elif len(words) == 5:
            boxes += 1
        elif len(words) < 7 or len(words) % 2 == 0:
            problems.append(f"{where}: must have at least three x, y pairs, but got {len(words) - 1} numbers.")
        else:
            ring_N2 = np.array(words[1:], dtype=np.float64).reshape(-1, 2)
            if ring_N2.min() < -1 or ring_N2.max() > 2:
                problems.append(
                    f"{where}: must have coordinates from 0 to 1, as shares of the image's sides, but got "
                    f"{ring_N2.max():g}. Are they pixels?"
                )
            outlines.append((int(words[0]), RelativeOutline(ring_N2)))
    raise_all(problems)
    return outlines, boxes


def _class_names(files: FilesBelow) -> tuple[dict[int, str], Path | None]:
    """The names by class number, of ``data.yaml`` or ``classes.txt``, and that file; empty where there is none."""
    for path in sorted(files.with_suffix(".yaml", ".yml"), key=lambda path: len(path.parts)):
        content: Any = read_yaml(path)
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, list) and names:
            return dict(enumerate(map(str, names))), path
        if isinstance(names, dict) and names and all(str(key).isdigit() for key in names):
            return {int(key): str(name) for key, name in names.items()}, path
    for path in files.with_suffix("classes.txt", "obj.names"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if names := [line.strip() for line in lines if line.strip()]:
            return dict(enumerate(names)), path
    return {}, None
