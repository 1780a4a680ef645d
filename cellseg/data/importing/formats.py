"""Formats of other tools: which of them are in a folder, and the data set that their files make."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cellseg.data.channels import PlaneChoice
from cellseg.data.coco_files import split_of
from cellseg.data.files_below import FilesBelow
from cellseg.data.importing import cvat, geojson, imagej, label_images, labelme, via, yolo
from cellseg.data.importing.listing import Listing, some, to_dataset
from cellseg.data.importing.options import ImportOptions
from cellseg.data.importing.others import unread_annotations, unread_images
from cellseg.data.source import Dataset
from cellseg.errors import UserError
from cellseg.names import counted

IMPORT = "python -m cellseg.data.import_labels"
"""The command, as messages name it."""


class _Read(Protocol):
    def __call__(self, files: FilesBelow, options: ImportOptions, instances: str) -> Listing: ...


@dataclass(frozen=True)
class Format:
    """A way in which a tool writes annotations."""

    describe: str
    """What is found, after its number: ``6 masks in Cellpose's style``."""
    find: Callable[[FilesBelow], list[Path]]
    """Lists the annotation files in a folder, by their names and a look into them."""
    read: _Read
    """Reads them."""


def _without_masks(read: Callable[[FilesBelow, ImportOptions], Listing]) -> _Read:
    return lambda files, options, instances: read(files, options)


FORMATS: dict[str, Format] = {
    "cellpose": Format("masks in Cellpose's style", label_images.find_cellpose, label_images.read_cellpose),
    "stardist": Format("masks in folders as StarDist reads them", label_images.find_folders, label_images.read_folders),
    "labels": Format("label images named after their image", label_images.find_named, label_images.read_named),
    "labelme": Format("labelme files", labelme.find, _without_masks(labelme.read)),
    "geojson": Format("GeoJSON files as QuPath writes them", geojson.find, _without_masks(geojson.read)),
    "imagej": Format("ROI files of ImageJ", imagej.find, _without_masks(imagej.read)),
    "yolo": Format("label files of YOLO", yolo.find, _without_masks(yolo.read)),
    "cvat": Format("XML files of CVAT", cvat.find, _without_masks(cvat.read)),
    "via": Format("files of VGG Image Annotator", via.find, _without_masks(via.read)),
}
"""``data.layout`` -> format. Of two that claim the same files the first is meant."""
WITH_MASK_FILES = ("cellpose", "stardist", "labels")
"""Layouts to which ``data.instances`` applies."""


def open_foreign(
    files: FilesBelow, layout: str | None, choice: PlaneChoice, instances: str, options: ImportOptions | None = None
) -> Dataset:
    """Open a folder of another tool's files as a data set.

    Args:
        layout: a key of :data:`FORMATS`. None: the only format that is found.
        instances: see ``data.instances``.
        options: see :class:`ImportOptions`. None: the defaults.

    Raises:
        UserError: nothing known there, several formats, or all problems of the files.
    """
    options = options or ImportOptions()
    if layout is None:
        layout = "labels" if options.masks is not None else _only_format(files)
    chosen = FORMATS[layout]
    if not (options.masks is not None and layout == "labels") and not chosen.find(files):
        raise UserError(f"{files.root}: must hold {chosen.describe}, but got none. It holds {_contents(files)}.")
    listing = chosen.read(files, options, instances)
    _set_tests_apart(listing, files)
    settings = {"instances": instances} if layout in WITH_MASK_FILES else {}
    return to_dataset(listing, files, layout, settings, choice)


def _only_format(files: FilesBelow) -> str:
    found = recognise(files)
    if len(found) == 1:
        return next(iter(found))
    if not found:
        hint = f"{unread_annotations(files)} {unread_images(files)}".strip()
        hint = hint or f"Check --data; for label images under other names, run {IMPORT} SOURCE DEST --masks PATTERN."
        raise UserError(
            f"{files.root}: must hold train/<id>/image.tif with class1.tif ... beside it, a COCO annotation JSON, or "
            f"annotations of a tool that {IMPORT} reads, but got neither. It holds {_contents(files)}. {hint}"
        )
    seen = ", ".join(f"{len(paths)} {FORMATS[name].describe} ({name})" for name, paths in found.items())
    raise UserError(
        f"{files.root}: must hold annotations of one kind, but got {seen}. Choose with --layout NAME (data.layout in a "
        f"space), or run {IMPORT} {files.root} DEST --layout NAME."
    )


def recognise(files: FilesBelow) -> dict[str, list[Path]]:
    """Find the formats in a folder, each with its annotation files; none whose files all belong to one before it."""
    found: dict[str, list[Path]] = {}
    claimed: set[Path] = set()
    for name, each in FORMATS.items():
        paths = each.find(files)
        if name == "imagej" and "cellpose" in found:  # Cellpose writes outlines for ImageJ beside its masks
            paths = [path for path in paths if not path.name.lower().endswith("_rois.zip")]
        if paths and not claimed.issuperset(paths):
            found[name] = paths
            claimed |= set(paths)
    return found


def _set_tests_apart(listing: Listing, files: FilesBelow) -> None:
    """Make test images of those in a folder ``test``, where another is ``train``."""
    split = {id(item): split_of(item.image, files.root) for item in listing.items if isinstance(item.image, Path)}
    if "train" not in split.values() or "test" not in split.values():
        return
    tests = [item for item in listing.items if split.get(id(item)) == "test"]
    listing.items = [item for item in listing.items if split.get(id(item)) != "test"]
    listing.tests += [item.image for item in tests if isinstance(item.image, Path)]
    listing.notes.append(
        f"{files.root}: the folder test holds {counted(len(tests), 'test image')}, whose annotations are not used."
    )


def _contents(files: FilesBelow) -> str:
    """What is in a folder, by suffix, for a person who wonders what was seen."""
    counts = Counter(path.suffix.lower() or path.name for path in files.paths)
    by_number = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return some([f"{count} {suffix}" for suffix, count in by_number]) or "no files"
