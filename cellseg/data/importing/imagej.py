"""ImageJ's selections: the zip of its ROI Manager, or a .roi file, for each image."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.data.files_below import FilesBelow
from cellseg.data.importing.listing import Item, Listing, note_unannotated
from cellseg.data.importing.options import ImportOptions, require_extra
from cellseg.data.importing.pairs import find_image
from cellseg.data.importing.shapes import Ellipse, Outlines, Paths, Shape, rectangle
from cellseg.errors import UserError

if TYPE_CHECKING:
    from roifile import ImagejRoi

_SUFFIXES = (".zip", ".roi")
_DECORATIONS = tuple(f"{word}{mark}" for word in ("roiset", "rois", "roi") for mark in "_- ")
"""What is put before an image's name."""
_MAX_BYTES = 50_000_000
"""Of one selection."""
_AUTOMATIC = re.compile(r"[\d\- .]*")
"""Names that ImageJ makes itself: 0001-0123-0456."""


def find(files: FilesBelow) -> list[Path]:
    """List .roi files, and zips of them."""
    return [path for path in files.with_suffix(*_SUFFIXES) if path.suffix.lower() == ".roi" or _holds_rois(path)]


def read(files: FilesBelow, options: ImportOptions) -> Listing:
    """List the images of ROI files of the same name. A selection's class is its property ``class``, or its group."""
    require_extra("roifile", str(files.root))
    listing = Listing()
    cells_of: dict[Path, list[tuple[str, Shape]]] = {}
    paths_of: dict[Path, list[Path]] = {}
    for path in find(files):
        try:
            image = find_image(path, _SUFFIXES, files, _DECORATIONS)
            cells = list(_read_file(path, options, listing))
        except UserError as error:
            listing.problems += error.problems
            continue
        cells_of.setdefault(image, []).extend(cells)
        paths_of.setdefault(image, []).append(path)
    for image, paths in paths_of.items():
        if len(paths) > 1 and any(path.suffix.lower() == ".zip" for path in paths):
            names = " and ".join(path.name for path in paths)
            listing.problems.append(f"{image}: must have one file of selections, but got {names}. Remove the others.")
        listing.items.append(Item(image, tuple(cells_of[image]), tuple(paths)))
    note_unannotated(listing, files, "a ROI file")
    return listing


def _holds_rois(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_is_roi(name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _is_roi(name: str) -> bool:
    return name.lower().endswith(".roi") and not name.startswith("__MACOSX")


def _read_file(path: Path, options: ImportOptions, listing: Listing) -> Iterator[tuple[str, Shape]]:
    from roifile import ImagejRoi

    problems = []
    for name, data in _contents(path):
        where = f"{path}: {name}"
        try:
            roi = ImagejRoi.frombytes(data)
            shape = _shape(roi)
        except Exception as error:  # roifile raises ValueError, struct.error, IndexError, ... on damaged data
            detail = " ".join(str(error).split()) or type(error).__name__
            problems.append(f"{where}: must be a selection that ImageJ saved, but got: {detail[:80]}. Save it again.")
            continue
        if shape is None:
            kind = roi.roitype.name.lower() if roi.subtype.name != "TEXT" else "text"
            listing.skipped[f"selections of type {kind}, which enclose no cell"] += 1
        else:
            yield _class_name(roi, options), shape
    if problems:
        raise UserError(*problems)


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.suffix.lower() == ".roi":
            yield path.name, path.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if _is_roi(entry.filename):
                    if entry.file_size > _MAX_BYTES:
                        raise UserError(
                            f"{path}: {entry.filename}: must be a selection, but got {entry.file_size:,} bytes."
                        )
                    yield entry.filename, archive.read(entry)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path}: must be a readable zip file, but got '{error}'. Save it again.") from error


def _shape(roi: "ImagejRoi") -> Shape | None:
    """The area of a selection; None for those without one."""
    from roifile import ROI_SUBTYPE, ROI_TYPE

    if roi.subtype in (ROI_SUBTYPE.TEXT, ROI_SUBTYPE.ARROW, ROI_SUBTYPE.IMAGE):
        return None
    if roi.shape_roi_size > 0 and roi.multi_coordinates is not None:
        rings = tuple(_ring(path) for path in roi.path2coords(roi.multi_coordinates))
        rings = tuple(ring for ring in rings if len(ring) >= 3)
        return Paths(rings) if rings else None
    x, y, width, height = _bounds(roi)
    match roi.roitype:
        case ROI_TYPE.RECT:
            return rectangle(x, y, x + width, y + height)
        case ROI_TYPE.OVAL:
            return Ellipse((x + width / 2, y + height / 2), (width / 2, height / 2))
        case ROI_TYPE.POLYGON | ROI_TYPE.FREEHAND | ROI_TYPE.TRACED:
            ring = _ring(roi.coordinates())
            return Outlines(((ring,),)) if len(ring) >= 3 else None
    return None


def _bounds(roi: "ImagejRoi") -> tuple[float, float, float, float]:
    if roi.subpixelrect and roi.widthd > 0 and roi.heightd > 0:
        return float(roi.xd), float(roi.yd), float(roi.widthd), float(roi.heightd)
    return float(roi.left), float(roi.top), float(roi.right - roi.left), float(roi.bottom - roi.top)


def _ring(coordinates: Any) -> np.ndarray:
    ring_N2 = np.asarray(coordinates, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(ring_N2).all():
        raise ValueError("its points must be finite")
    return ring_N2


def _class_name(roi: "ImagejRoi", options: ImportOptions) -> str:
    """The class: the property of that name, the group's number, or the default."""
    properties = dict(re.findall(r"^\s*([^:=\n]+?)\s*[:=]\s*(.+?)\s*$", roi.props or "", re.MULTILINE))
    for key in (options.class_key,) if options.class_key else ("class", "Class", "classification", "category"):
        if properties.get(key or ""):
            return properties[key or ""]
    if options.class_key == "name" and roi.name and not _AUTOMATIC.fullmatch(roi.name):
        return re.sub(r"[-_ ]?\d+$", "", roi.name) or options.class_name
    return f"group {roi.group}" if roi.group else options.class_name
