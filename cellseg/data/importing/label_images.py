"""Label images, one value per cell: as Cellpose writes them, in folders as StarDist reads them, or by their names."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from scipy import ndimage

from cellseg.data.files_below import FilesBelow, image_stem
from cellseg.data.images import TIFF_SUFFIXES, read_id_map
from cellseg.data.importing.listing import Item, Listing, note_unannotated, some
from cellseg.data.importing.options import ImportOptions
from cellseg.data.importing.others import unread_images
from cellseg.data.importing.seg_npy import read_seg_npy
from cellseg.data.importing.shapes import Window
from cellseg.data.release import renumber
from cellseg.errors import UserError

_MASK_SUFFIXES = (*TIFF_SUFFIXES, ".png")  # JPEG would change ids
_IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs", "raw", "input", "inputs"})
_MASK_FOLDERS = frozenset(
    {"mask", "masks", "label", "labels", "lbl", "lbls", "annotation", "annotations", "gt", "groundtruth", "target"}
    | {"targets", "ground_truth", "instances", "segmentation", "segmentations"}
)
_MARK = r"[_\-. ]?(?:cp_masks?|masks?|labels?|lbls?|lab|instances?|inst|segmentation|seg|gt|annotations?)"
"""What is put behind an image's name to name its label image."""
_MARKED = re.compile(rf"(.+?){_MARK}", re.IGNORECASE)
_CELLPOSE_MASKS = re.compile(r"(.+?)(?:_cp)?_masks", re.IGNORECASE)
_CELLPOSE_OTHERS = re.compile(
    r".+(?:_(?:cp_)?(?:flows|outlines|output|dP|cellprob)\w*|_outlines_cp_masks)", re.IGNORECASE
)
"""Pictures that Cellpose writes beside its masks."""


@dataclass(frozen=True)
class LabelImage:
    """A file of cell ids: all cells of an image, or of a class of it."""

    path: Path
    instances: str
    """``ids``: each value is a cell. ``components``: each connected part is. ``whole``: all that is not 0 is one."""
    holds_many: ClassVar[Literal[True]] = True

    def masks(self, height: int, width: int) -> Iterator[Window]:
        """See :class:`cellseg.data.importing.shapes.Shape`."""
        ids_HW = read_seg_npy(self.path) if self.path.suffix.lower() == ".npy" else read_id_map(self.path)
        if ids_HW.shape != (height, width):
            raise UserError(
                f"{self.path}: must have the size of its image, {height} x {width}, but got "
                f"{ids_HW.shape[0]} x {ids_HW.shape[1]}."
            )
        if self.instances == "components":
            numbers_HW, _ = ndimage.label(ids_HW > 0, structure=np.ones((3, 3), dtype=bool))
        elif self.instances == "whole":
            numbers_HW = (ids_HW > 0).astype(np.int64)
        else:
            numbers_HW, _ = renumber(ids_HW)
        for number, (rows, columns) in enumerate(ndimage.find_objects(numbers_HW), start=1):
            yield numbers_HW[rows, columns] == number, (rows.start, columns.start)


# Cellpose


def find_cellpose(files: FilesBelow) -> list[Path]:
    """List the mask files that Cellpose writes: ``X_masks.png``, ``X_cp_masks.tif``, ``X_seg.npy``."""
    return [*_cellpose_masks(files), *files.with_suffix("_seg.npy")]


def read_cellpose(files: FilesBelow, options: ImportOptions, instances: str) -> Listing:
    """List Cellpose's masks with their images. Where an image has both, ``_seg.npy`` counts: corrections go there."""
    listing = Listing()
    masks = _cellpose_masks(files)
    others = {path for path in files.images if path in masks or _CELLPOSE_OTHERS.fullmatch(path.stem)}
    of_image: dict[Path, list[Path]] = defaultdict(list)
    bases = {path: path.name[: -len("_seg.npy")] for path in files.with_suffix("_seg.npy")} | masks
    for path, base in bases.items():
        candidates = [
            image for stem in (base, f"{base}_img") for image in files.images_of_stem(stem) if image not in others
        ]
        image = _nearest(candidates, path)
        if image is None:
            listing.problems.append(
                f"{path}: must lie beside its image, {base}.tif, .png or .jpg, but got "
                f"{'several' if candidates else 'none'}. {unread_images(files) or 'Copy the image there.'}"
            )
        else:
            of_image[image].append(path)
    both = []
    for image, paths in sorted(of_image.items()):
        if len(paths) > 1:
            both.append(files.relative(image))
        mask = next((path for path in paths if path.suffix.lower() == ".npy"), paths[0])
        if len([path for path in paths if path.suffix.lower() != ".npy"]) > 1 and mask.suffix.lower() != ".npy":
            names = " and ".join(path.name for path in paths)
            listing.problems.append(f"{image}: must have one file of masks, but got {names}. Remove one.")
            continue
        listing.items.append(Item(image, ((options.class_name, LabelImage(mask, instances)),), (mask,)))
    if both:
        listing.notes.append(
            f"{files.root}: of {len(both)} images the masks in _seg.npy are used, not those in _masks files, since "
            f"Cellpose saves corrections there: {some(both)}."
        )
    note_unannotated(listing, files, "masks", [path for path in files.images if path not in others])
    return listing


def _cellpose_masks(files: FilesBelow) -> dict[Path, str]:
    """Mask image -> name of the image it belongs to."""
    found = {}
    for path in files.images:
        if path.suffix.lower() in _MASK_SUFFIXES and not _CELLPOSE_OTHERS.fullmatch(path.stem):
            match = _CELLPOSE_MASKS.fullmatch(path.stem)
            if match:
                found[path] = match[1]
    return found


def _nearest(candidates: list[Path], path: Path) -> Path | None:
    """The image in the file's folder, in the one above or in one beside it, else the only one there is."""
    near = (
        [each for each in candidates if each.parent == path.parent],
        [each for each in candidates if each.parent == path.parent.parent],
        [each for each in candidates if each.parent.parent == path.parent.parent],
        candidates,
    )
    return next((group[0] for group in near if len(group) == 1), None)


# Folders


def find_folders(files: FilesBelow) -> list[Path]:
    """List the masks in folders such as ``masks/`` that lie beside one such as ``images/``."""
    return [mask for _, masks in _folder_pairs(files) for mask in masks]


def read_folders(files: FilesBelow, options: ImportOptions, instances: str) -> Listing:
    """List images and masks of the same name. Folders inside ``masks/`` that ``images/`` lacks are classes; where one
    image has many masks of other names, each is a cell."""
    listing = Listing()
    unmatched: list[Path] = []
    for images, masks in _folder_pairs(files):
        top_images, top_masks = _top(images[0], _IMAGE_FOLDERS), _top(masks[0], _MASK_FOLDERS)
        image_of = {_key(image, top_images): image for image in images}
        masks_of: dict[Path, list[tuple[str, Path]]] = defaultdict(list)
        rest = []
        for mask in masks:
            found = _match(_key(mask, top_masks), image_of, options)
            if found is None:
                rest.append(mask)
            else:
                masks_of[found[1]].append((found[0], mask))
        how = instances
        if rest and not masks_of and len(images) == 1:  # a folder for each image, with a mask for each cell
            masks_of[images[0]], rest, how = [(options.class_name, mask) for mask in rest], [], "whole"
        unmatched += rest
        for image, named in sorted(masks_of.items()):
            classes = [class_name for class_name, _ in named]
            if how != "whole" and len(set(classes)) < len(classes):
                names = " and ".join(path.name for _, path in named)
                listing.problems.append(f"{image}: must have one mask for each class, but got {names}. Remove one.")
                continue
            cells = tuple((class_name, LabelImage(mask, how)) for class_name, mask in named)
            listing.items.append(Item(image, cells, tuple(mask for _, mask in named)))
    if unmatched:
        listing.notes.append(
            f"{files.root}: {len(unmatched)} masks without an image of their name were left out: "
            f"{some([files.relative(path) for path in unmatched])}."
        )
    all_masks = {mask for _, masks in _folder_pairs(files) for mask in masks}
    note_unannotated(listing, files, "a mask", [path for path in files.images if path not in all_masks])
    listing.problems += _jpeg_problems(all_masks)
    return listing


def _folder_pairs(files: FilesBelow) -> list[tuple[list[Path], list[Path]]]:
    """The images and the masks of each pair of neighbouring folders; both have some."""
    by_top: dict[tuple[Path, str], dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in files.images:
        for names, kind in ((_IMAGE_FOLDERS, "images"), (_MASK_FOLDERS, "masks")):
            top = _top(path, names)
            if top is not None and top.is_relative_to(files.root) and top != files.root:
                by_top[top.parent, kind][top].append(path)
                break
    pairs = []
    for (parent, kind), tops in sorted(by_top.items()):
        masks = by_top.get((parent, "masks"))
        if kind == "images" and masks and len(tops) == len(masks) == 1:
            pairs.append((next(iter(tops.values())), next(iter(masks.values()))))
    return pairs


def _top(path: Path, names: frozenset[str]) -> Path | None:
    """The nearest folder above a file with one of these names."""
    return next((folder for folder in path.parents if folder.name.lower() in names), None)


def _key(path: Path, top: Path | None) -> str:
    assert top is not None
    return (path.relative_to(top).parent / image_stem(path)).as_posix()


def _match(key: str, image_of: dict[str, Path], options: ImportOptions) -> tuple[str, Path] | None:
    """The class and the image that a mask belongs to."""
    marked = _MARKED.fullmatch(key)
    for name in (key, marked[1] if marked else key):
        if name in image_of:
            return options.class_name, image_of[name]
        folder, _, rest = name.partition("/")
        if rest in image_of:
            return folder, image_of[rest]
    return None


# Names


def find_named(files: FilesBelow) -> list[Path]:
    """List label images beside their image, named after it: ``X_label.tif`` beside ``X.tif``."""
    return [mask for _, mask in _named_pairs(files)]


def read_named(files: FilesBelow, options: ImportOptions, instances: str) -> Listing:
    """List label images by the pattern of ``options``, or by the usual marks behind an image's name."""
    listing = Listing()
    if options.masks is None:
        for image, mask in _named_pairs(files):
            listing.items.append(Item(image, ((options.class_name, LabelImage(mask, instances)),), (mask,)))
        masks = {mask for _, mask in _named_pairs(files)}
    else:
        masks = _read_pattern(files, options.masks, options, instances, listing)
    note_unannotated(listing, files, "a mask", [path for path in files.images if path not in masks])
    listing.problems += _jpeg_problems(masks)
    return listing


def _named_pairs(files: FilesBelow) -> list[tuple[Path, Path]]:
    known = {(path.parent, image_stem(path)): path for path in files.images}
    pairs = []
    for path in files.images:
        match = _MARKED.fullmatch(image_stem(path))
        if match and path.suffix.lower() in _MASK_SUFFIXES and (image := known.get((path.parent, match[1]))):
            pairs.append((image, path))
    return pairs


def _read_pattern(
    files: FilesBelow, pattern: str, options: ImportOptions, instances: str, listing: Listing
) -> set[Path]:
    """Add what a pattern such as ``masks/{name}_{class}.tif`` finds; return the masks."""
    if pattern.count("{name}") != 1 or pattern.count("{class}") > 1:
        raise UserError(
            f"--masks: must have {{name}} once, for the name of the image, and {{class}} at most once, but got "
            f"'{pattern}'. Example: 'masks/{{name}}_{{class}}.tif'."
        )
    text = re.escape(pattern).replace(r"\{name\}", "(?P<name>.+)").replace(r"\{class\}", "(?P<kind>[^/]+)")
    expression = re.compile(text.replace(r"\*", "[^/]*"))
    matches = {path: expression.fullmatch(files.relative(path)) for path in (*files.images, *files.with_suffix(".npy"))}
    found = {path: match for path, match in matches.items() if match}
    if not found:
        listing.problems.append(f"{files.root}: --masks '{pattern}' must find a file, but got none. Check the pattern.")
    masks_of: dict[Path, list[tuple[str, Path]]] = defaultdict(list)
    for path, match in sorted(found.items()):
        name = match["name"]
        candidates = [
            image
            for image in files.images_of_stem(name.rpartition("/")[2])
            if image not in found and files.relative(image).rpartition(".")[0].endswith(name)
        ]
        image = _nearest(candidates, path)
        if image is None:
            listing.problems.append(
                f"{path}: must have an image named {name}, but got {'several' if candidates else 'none'}. "
                "Change --masks, or remove it."
            )
        else:
            masks_of[image].append((match.groupdict().get("kind") or options.class_name, path))
    for image, named in sorted(masks_of.items()):
        cells = tuple((class_name, LabelImage(path, instances)) for class_name, path in named)
        listing.items.append(Item(image, cells, tuple(path for _, path in named)))
    return set(found)


def _jpeg_problems(masks: set[Path]) -> list[str]:
    jpegs = sorted(path for path in masks if path.suffix.lower() not in (*_MASK_SUFFIXES, ".npy"))
    return [f"{path}: a mask must be TIFF or PNG, but got JPEG, which changes ids. Export it again." for path in jpegs]
