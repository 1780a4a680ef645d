"""The files of a data folder: what lies in it and below, without what is hidden or left there by systems and tools."""

import mmap
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PureWindowsPath

from cellseg.data.images import IMAGE_SUFFIXES

_JUNK = frozenset({"__macosx", "@eadir", "__pycache__", "$recycle.bin", "thumbs.db", "desktop.ini"})
"""Names, in lower case, that systems leave in folders."""


class FilesBelow:
    """The files of a folder and of those below it, listed once. Hidden ones do not count."""

    def __init__(self, root: Path):
        self.root = root
        self.paths: tuple[Path, ...] = tuple(sorted(_walk(root)))

    @cached_property
    def images(self) -> tuple[Path, ...]:
        """Files with a suffix of images, sorted."""
        return tuple(path for path in self.paths if path.suffix.lower() in IMAGE_SUFFIXES)

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """List the files with one of these suffixes, in lower case, such as ``.json`` or ``.geojson.gz``; sorted."""
        return [path for path in self.paths if path.name.lower().endswith(suffixes)]

    def relative(self, path: Path) -> str:
        """Write a file's path relative to the folder, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def find_named(self, name: str, beside: Path) -> Path | None:
        """Find the file that another one names, or None.

        Looks where the name leads from the folder ``beside`` and from the root, then for the only file below the root
        with its last part, so that annotations still fit when they were moved. Names with backslashes and absolute
        ones of another machine count with their last part. What lies outside the root is never found.
        """
        parts = PureWindowsPath(name).parts
        if not parts:
            return None
        for folder in (beside, self.root):
            place = Path(os.path.normpath(folder.joinpath(*parts)))
            if place in self._known:
                return place
        same = self._by_name.get(_folded(parts[-1]), [])
        return same[0] if len(same) == 1 else None

    def images_named(self, name: str) -> list[Path]:
        """List the images of that name, in upper or lower case, sorted."""
        return [path for path in self._by_name.get(_folded(name), []) if path.suffix.lower() in IMAGE_SUFFIXES]

    def images_of_stem(self, stem: str) -> list[Path]:
        """List the images whose name without suffix is ``stem``, sorted."""
        return self._by_stem.get(unicodedata.normalize("NFC", stem), [])

    @cached_property
    def _known(self) -> frozenset[Path]:
        return frozenset(self.paths)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped((_folded(path.name), path) for path in self.paths)

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        stems = (
            (unicodedata.normalize("NFC", stem), path) for path in self.images for stem in {path.stem, image_stem(path)}
        )
        return _grouped(stems)


def mentions(path: Path, *keys: str) -> bool:
    """Whether all of these JSON keys are somewhere in a file. Parsing takes a hundred times as long, and tools write
    thousands of JSON files."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(f'"{key}"'.encode()) >= 0 for key in keys)
    except (OSError, ValueError):  # unreadable, or empty
        return False


def image_stem(path: Path) -> str:
    """The name of an image without its suffix, of which ``.ome.tif`` is one."""
    return path.stem[:-4] if path.stem.lower().endswith(".ome") else path.stem


def _folded(name: str) -> str:
    """A name for comparison: macOS writes accents as characters of their own, and systems differ in case."""
    return unicodedata.normalize("NFC", name).lower()


def _grouped(pairs: Iterator[tuple[str, Path]]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return groups


def _walk(root: Path) -> Iterator[Path]:
    """Every file below ``root``; links to folders are followed, but none that leads back to where it is."""
    seen: set[tuple[int, int]] = set()
    _is_new(root, seen)
    for folder, names, files in os.walk(root, followlinks=True):
        place = Path(folder)
        names[:] = sorted(name for name in names if _counts(name) and _is_new(place / name, seen))
        yield from (place / name for name in files if _counts(name))


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return False
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return False
    seen.add(key)
    return True


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _JUNK
