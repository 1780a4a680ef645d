"""The release layout: a folder per training image, with a map of cell ids per class.

    ROOT/train/<id>/image.tif, class1.tif, class2.tif, ...     (a class without cells has no file)
    ROOT/test_release/<id>.tif                                 (see ``read_test_list`` in testset.py)
    ROOT/test_image_name_to_ids.json

Ids are unique within a class map only, and have gaps; a sample numbers its cells anew, class by class.

Shape suffixes: H height, W width, P planes, N cells.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from cellseg.data.channels import PlaneChoice
from cellseg.data.images import TIFF_SUFFIXES, read_id_map, read_image
from cellseg.data.sample import MAX_INSTANCES, Sample
from cellseg.data.source import Dataset, list_images
from cellseg.errors import UserError

MAX_CLASS = 999
_CLASS_NAME = re.compile(r"class([1-9]\d{0,2})", re.IGNORECASE)
_MAP_SUFFIXES = (*TIFF_SUFFIXES, ".png")  # JPEG would change ids
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class ReleaseSource:
    """A sample folder: an image and the class maps beside it."""

    name: str
    folder: Path
    images: tuple[Path, ...]
    """Exactly one, or :meth:`load` says so."""
    class_maps: tuple[tuple[int, Path], ...]
    """(class, file), sorted. Empty: an image without cells."""
    misnamed: tuple[Path, ...]
    """Files that look like class maps but name no class."""
    choice: PlaneChoice
    instances: str
    """``ids``: each value is a cell. ``components``: the map is a mask whose connected components are cells."""

    @property
    def files(self) -> tuple[Path, ...]:
        return *self.images, *(path for _, path in self.class_maps)

    def load(self) -> Sample:
        """See :meth:`cellseg.data.source.Source.load`."""
        problems = self._listing_problems()
        image_HWC = None
        if len(self.images) == 1:
            try:
                image_HWC = read_image(self.images[0], self.choice)
            except UserError as error:
                problems += error.problems
        maps: list[tuple[int, np.ndarray]] = []
        for label, path in self.class_maps:
            try:
                ids_HW = read_id_map(path)
            except UserError as error:
                problems += error.problems
                continue
            if image_HWC is not None and ids_HW.shape != image_HWC.shape[:2]:
                problems.append(
                    f"{path}: must have the size of its image, {_size(image_HWC.shape)}, but got {_size(ids_HW.shape)}."
                )
            else:
                maps.append((label, ids_HW))
        if problems or image_HWC is None:
            raise UserError(*problems)
        try:
            planes_PHW, labels_N = merge_class_maps(maps, image_HWC.shape[:2], self.instances)
        except UserError as error:
            raise UserError(*(f"{self.folder}: {problem}" for problem in error.problems)) from error
        return Sample(self.name, image_HWC, planes_PHW, labels_N)

    def _listing_problems(self) -> list[str]:
        problems = []
        if len(self.images) != 1:
            found = " and ".join(path.name for path in self.images) or "none"
            problems.append(f"{self.folder}: must hold one file image.tif (or .png, .jpg), but got {found}.")
        maps_of: dict[int, list[str]] = defaultdict(list)
        for label, path in self.class_maps:
            maps_of[label].append(path.name)
        problems += [
            f"{self.folder}: a class must have one map, but got {' and '.join(names)}. Remove one."
            for names in maps_of.values()
            if len(names) > 1
        ]
        problems += [
            f"{path}: a class map must be named classK.tif (or .png) with K from 1 to {MAX_CLASS}, "
            f"but got '{path.name}'. Rename it."
            for path in self.misnamed
        ]
        return problems


def has_release_layout(root: Path) -> bool:
    """Return whether some folder in ``root/train`` holds an image or a class map."""
    return any(source.files for source in _list_sources(root / "train", "ids", PlaneChoice()))


def open_release(root: Path, instances: str, choice: PlaneChoice) -> Dataset:
    """List the sample folders in ``root/train``. There are as many classes as the largest K of all class maps.

    Raises:
        UserError: no sample folder.
    """
    train = root / "train"
    sources = _list_sources(train, instances, choice)
    if not sources:
        raise UserError(f"{train}: must hold a folder per image, but got none. Check --data and data.layout.")
    num_classes = max((label for source in sources for label, _ in source.class_maps), default=1)
    return Dataset(
        root=root,
        layout="release",
        class_names=tuple(f"class{label}" for label in range(1, num_classes + 1)),
        category_ids=tuple(range(1, num_classes + 1)),
        sources=tuple(sources),
        settings={"layout": "release", "instances": instances, **choice.settings},
        notes=tuple(_stray_notes(train, sources)),
    )


def merge_class_maps(
    maps: Iterable[tuple[int, np.ndarray]], size: tuple[int, int], instances: str
) -> tuple[np.ndarray, np.ndarray]:
    """Build planes and labels from class maps; equal to ``planes.stack_masks`` of the single cells.

    Cells of one map cannot overlap, so a whole map is placed at once: for each plane, the cells that would cover a
    taken pixel are found in one look-up and go on to the next plane.

    Args:
        maps: (class, (H, W) int64 ids from 0); cells are numbered in this order, and by id within a map.
        size: (height, width) of the image in px.
        instances: ``ids`` or ``components``, see :class:`ReleaseSource`.

    Returns:
        planes_PHW uint16 with P >= 1, labels_N int64.

    Raises:
        UserError: more cells than fit a plane's numbers.
    """
    planes = [np.zeros(size, np.uint16)]
    labels: list[np.ndarray] = []
    total = 0
    for label, ids_HW in maps:
        if instances == "components":
            numbers_HW, count = ndimage.label(ids_HW > 0, structure=_EIGHT_NEIGHBOURS)
        else:
            numbers_HW, count = renumber(ids_HW)
        if total + count > MAX_INSTANCES:
            raise UserError(
                f"an image must have at most {MAX_INSTANCES} cells, but got {total + count} or more. "
                "Is a class map an image instead of cell ids?"
            )
        _place(planes, numbers_HW, count, total)
        labels.append(np.full(count, label, np.int64))
        total += count
    return np.stack(planes), np.concatenate([np.zeros(0, np.int64), *labels])


def renumber(ids_HW: np.ndarray) -> tuple[np.ndarray, int]:
    """Replace the ids of a map by 1..n in ascending order; also returns n. 0 stays 0."""
    if ids_HW.max(initial=0) <= ids_HW.size:
        present = np.bincount(ids_HW.ravel()) > 0
        present[0] = False
        return np.cumsum(present)[ids_HW], int(np.count_nonzero(present))
    # Ids too large for a table of all values: sort them instead, which takes ten times as long.
    ids, numbers = np.unique(ids_HW, return_inverse=True)
    has_background = int(ids[0] == 0)
    return numbers.reshape(ids_HW.shape) + (1 - has_background), len(ids) - has_background


def _place(planes: list[np.ndarray], numbers_HW: np.ndarray, count: int, offset: int) -> None:
    """Write cells 1..count of ``numbers_HW`` into ``planes`` as offset + 1 ...; append planes where none is free."""
    pending = np.ones(count + 1, dtype=bool)
    pending[0] = False
    index = 0
    while pending.any():
        if index == len(planes):
            planes.append(np.zeros_like(planes[0]))
        plane_HW = planes[index]
        fits = pending.copy()
        fits[numbers_HW[plane_HW > 0]] = False
        chosen_HW = fits[numbers_HW]
        plane_HW[chosen_HW] = numbers_HW[chosen_HW] + offset
        pending &= ~fits
        index += 1


def _list_sources(train: Path, instances: str, choice: PlaneChoice) -> list[ReleaseSource]:
    if not train.is_dir():
        return []
    folders = sorted(path for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [_list_source(folder, instances, choice) for folder in folders]


def _list_source(folder: Path, instances: str, choice: PlaneChoice) -> ReleaseSource:
    images, class_maps, misnamed = [], [], []
    for path in list_images(folder):
        match = _CLASS_NAME.fullmatch(path.stem)
        if path.stem.lower() == "image":
            images.append(path)
        elif match and path.suffix.lower() in _MAP_SUFFIXES:
            class_maps.append((int(match[1]), path))
        elif path.stem.lower().startswith("class"):
            misnamed.append(path)
    maps = tuple(sorted(class_maps))
    return ReleaseSource(folder.name, folder, tuple(images), maps, tuple(misnamed), choice, instances)


def _stray_notes(train: Path, sources: list[ReleaseSource]) -> Iterable[str]:
    known = {path for source in sources for path in (*source.files, *source.misnamed)}
    folders = [source.folder for source in sources]
    paths = [path for folder in folders for path in folder.iterdir() if path not in known]
    paths += [path for path in train.iterdir() if path not in set(folders)]
    for path in sorted(paths):
        if not path.name.startswith("."):
            yield f"{path}: is not part of the release layout and was ignored."


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"
