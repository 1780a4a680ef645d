"""What a reader of another tool's files finds: images, each with its cells, and what was left out."""

import base64
import binascii
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cellseg.data.channels import PlaneChoice
from cellseg.data.coco_files import split_of
from cellseg.data.files_below import FilesBelow
from cellseg.data.images import decode_image, read_image, read_size
from cellseg.data.importing.shapes import Shape
from cellseg.data.planes import stack_masks
from cellseg.data.sample import MAX_INSTANCES, Sample
from cellseg.data.source import Dataset, TestImage
from cellseg.errors import Notice, UserError, raise_all
from cellseg.files import read_json
from cellseg.names import counted

SHOWN = 5
"""Names that a message lists at most."""


@dataclass(frozen=True)
class EmbeddedImage:
    """An image that a labelme file holds itself, as base64."""

    json_path: Path
    name: str
    """The name that the file gives the image."""

    def read_bytes(self) -> bytes:
        """Decode the image file.

        Raises:
            UserError: the text is no base64.
        """
        content = read_json(self.json_path)
        try:
            return base64.b64decode(content["imageData"])
        except (TypeError, KeyError, binascii.Error, ValueError) as error:
            raise UserError(f"{self.json_path}: imageData must be base64, but got: {error}.") from error


@dataclass(frozen=True)
class Item:
    """An annotated image as a reader finds it."""

    image: Path | EmbeddedImage
    cells: tuple[tuple[str, Shape], ...]
    """Class and shape of each cell, or of all cells of a mask file."""
    files: tuple[Path, ...] = ()
    """The files that the cells are from."""
    size: tuple[int | None, int | None] = (None, None)
    """(height, width) in pixels, as far as the annotations state them."""


@dataclass
class Listing:
    """All that a reader finds. Problems keep the data from being used; notes and skipped shapes do not."""

    items: list[Item] = field(default_factory=list)
    class_names: Sequence[str] | None = None
    """All classes in their order. None: those that occur, by name."""
    category_ids: Sequence[int] | None = None
    """The number of each class where the files number them. None: from 1."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """What was left out, and how often."""
    tests: list[Path] = field(default_factory=list)
    """Images of a test split."""


@dataclass(frozen=True)
class ForeignSource:
    """An image with the annotations of another tool."""

    name: str
    item: Item
    label_of: dict[str, int]
    choice: PlaneChoice

    @property
    def files(self) -> tuple[Path, ...]:
        image = self.item.image
        first = (image.json_path,) if isinstance(image, EmbeddedImage) else (image,)
        return tuple(dict.fromkeys((*first, *self.item.files)))

    def load(self) -> Sample:
        """See :meth:`cellseg.data.source.Source.load`. Cells without a pixel are left out with a notice."""
        image = self.item.image
        if isinstance(image, EmbeddedImage):
            where = f"{image.json_path}: imageData"
            image_HWC = decode_image(image.read_bytes(), where, self.choice)
        else:
            where = str(image)
            image_HWC = read_image(image, self.choice)
        height, width = image_HWC.shape[:2]
        stated = self.item.size
        if stated[0] not in (None, height) or stated[1] not in (None, width):
            raise UserError(
                f"{where}: must have the size that its annotations state, {stated[0]} x {stated[1]}, but got "
                f"{height} x {width}. Are they of another version of the image?"
            )
        masks: list[tuple[np.ndarray, tuple[int, int], int]] = []
        problems: list[str] = []
        empty = 0
        for class_name, shape in self.item.cells:
            try:
                windows = list(shape.masks(height, width))
            except UserError as error:
                problems += error.problems
                continue
            empty += not windows
            masks += [(mask_hw, corner, self.label_of[class_name]) for mask_hw, corner in windows]
        if len(masks) > MAX_INSTANCES:
            problems.append(f"{where}: must have at most {MAX_INSTANCES} cells, but got {len(masks)}.")
        outlines = not any(_may_be_empty(shape) for _, shape in self.item.cells)
        if empty and outlines and not masks and not problems:
            problems.append(
                f"{where}: must contain its outlines, but got {empty} of which none covers a pixel of it. Are they of "
                "another image, or in other units than its pixels?"
            )
        raise_all(problems)
        if empty and outlines:
            warnings.warn(
                f"{where}: {empty} of {len(self.item.cells)} outlines cover no pixel of the image and were left out.",
                Notice,
                stacklevel=2,
            )
        planes_PHW, labels_N = stack_masks(masks, height, width)
        return Sample(self.name, image_HWC, planes_PHW, labels_N)


def to_dataset(
    listing: Listing, files: FilesBelow, layout: str, settings: dict[str, str], choice: PlaneChoice
) -> Dataset:
    """Turn a listing into a data set.

    Raises:
        UserError: all problems of the listing, no image, or images whose names differ in their suffix only.
    """
    named = list(zip(_names([item.image for item in listing.items], files), listing.items, strict=True))
    problems = list(listing.problems)
    problems += [
        f"{files.root}: an image's name without suffix must be unique, but got '{name}' {count} times. Rename them."
        for name, count in Counter(name for name, _ in named).items()
        if count > 1
    ]
    if not named and not problems:
        problems.append(f"{files.root}: must hold annotated images, but got none.")
    raise_all(problems)
    class_names = listing.class_names
    if class_names is None:
        present = {class_name for item in listing.items for class_name, _ in item.cells}
        class_names = sorted(present, key=lambda name: (name.lower(), name))
    class_names = tuple(class_names) or ("cell",)
    label_of = {name: label for label, name in enumerate(class_names, start=1)}
    named.sort(key=lambda pair: pair[0])
    notes = list(listing.notes)
    if listing.skipped:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(listing.skipped.items()))
        notes.append(f"{files.root}: left out: {counts}.")
    ids = tuple(listing.category_ids or range(1, len(class_names) + 1))
    return Dataset(
        root=files.root,
        layout=layout,
        class_names=class_names,
        category_ids=ids,
        sources=tuple(ForeignSource(name, item, label_of, choice) for name, item in named),
        settings={"layout": layout, **settings, **choice.settings},
        notes=tuple(notes),
        validation=frozenset(name for name, item in named if _is_validation(item.image, files)),
        tests=tuple(_test_images(listing.tests, files)),
    )


def some(names: Sequence[str]) -> str:
    """Join a few names, and count the others."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def note_unannotated(listing: Listing, files: FilesBelow, what: str, images: Iterable[Path] | None = None) -> None:
    """Note the images of a folder for which there are no annotations: they may hold cells that nobody drew."""
    used = {item.image for item in listing.items} | set(listing.tests)
    rest = [files.relative(path) for path in (files.images if images is None else images) if path not in used]
    if rest:
        listing.notes.append(f"{files.root}: left out {counted(len(rest), 'image')} without {what}: {some(rest)}.")


def _names(images: list[Path | EmbeddedImage], files: FilesBelow) -> list[str]:
    """The names of images: their paths without suffix, below the folder that all are in."""
    places = [image.json_path.parent / image.name if isinstance(image, EmbeddedImage) else image for image in images]
    if not places:
        return []
    top = Path(os.path.commonpath([place.parent for place in places]))
    return [place.relative_to(top).with_suffix("").as_posix() for place in places]


def _test_images(paths: list[Path], files: FilesBelow) -> Iterable[TestImage]:
    for number, path in enumerate(paths, start=1):
        height, width = read_size(path)
        yield TestImage(files.relative(path), number, height, width, path)


def _is_validation(image: Path | EmbeddedImage, files: FilesBelow) -> bool:
    return isinstance(image, Path) and split_of(image, files.root) == "valid"


def _may_be_empty(shape: Shape) -> bool:
    return getattr(shape, "holds_many", False)
