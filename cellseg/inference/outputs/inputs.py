"""Images to predict: files, folders and patterns, each with a name that no other has."""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellseg.data.images import IMAGE_SUFFIXES
from cellseg.data.source import list_images
from cellseg.data.testset import TEST_FOLDER, has_test_list, read_test_list
from cellseg.errors import UserError, raise_all


@dataclass(frozen=True)
class Input:
    """An image to predict."""

    path: Path
    name: str
    """Stem of the files that are written for it."""
    image_id: int
    """COCO's number: that of the list of test images, else the position among the inputs, from 1."""


def find_inputs(words: Sequence[str]) -> list[Input]:
    """Find the images that the words of a command line mean, each once, in order.

    A word is an image file, a folder, whose own images are meant, a data set with a list of test images, whose test
    images are meant, or a pattern (``slides/**/*.tif``).

    Raises:
        UserError: for each word that means no image.
    """
    problems: list[str] = []
    found: dict[Path, int | None] = {}
    for word in words:
        try:
            for path, image_id in _images_of(word):
                found.setdefault(path, image_id)
        except UserError as error:
            problems.extend(error.problems)
    raise_all(problems)
    listed = [image_id for image_id in found.values() if image_id is not None]
    # Numbers of a list count only where every image has one, and no other list gives it to another image.
    if len(set(listed)) < len(found):
        found = {path: number for number, path in enumerate(found, start=1)}
    names = unique_names(list(found))
    return [
        Input(path, name, image_id)
        for (path, image_id), name in zip(found.items(), names, strict=True)
        if image_id is not None
    ]


def _images_of(word: str) -> Iterator[tuple[Path, int | None]]:
    path = Path(word)
    if path.is_dir():
        images = list_images(path)
        if not images and has_test_list(path):
            listed = read_test_list(path)
            if present := [(image.path, image.image_id) for image in listed if image.path is not None]:
                yield from present
                return
            raise UserError(f"{path}: its {TEST_FOLDER}/ must hold the listed test images, but got none of them.")
        if not images:
            raise UserError(
                f"{path}: must hold images ({', '.join(IMAGE_SUFFIXES)}), but got none. Images in folders below it "
                f"are found by a pattern: '{path}/**/*.tif'."
            )
        yield from ((image, None) for image in images)
    elif path.exists():
        yield path, None
    elif glob.has_magic(word):
        matches = [Path(match) for match in sorted(glob.glob(word, recursive=True))]  # noqa: PTH207  Path.glob refuses absolute patterns
        images = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise UserError(f"{word}: the pattern must match image files, but got {len(matches)} other matches.")
        yield from ((image, None) for image in images)
    else:
        raise UserError(f"{word}: must be an image file, a folder or a pattern, but got nothing there.")


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Name each path: by its stem; where several share it, with the suffix too; then with more and more of the folders
    above it."""
    names = [path.stem for path in paths]
    parts = [(*path.resolve().parent.parts[1:], path.name.replace(".", "_")) for path in paths]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        # Files of names that differ in case only would be one on some systems.
        counts = Counter(name.casefold() for name in names)
        if max(counts.values(), default=0) <= 1:
            break
        names = [
            "_".join(own[-depth:]) if counts[name.casefold()] > 1 else name
            for name, own in zip(names, parts, strict=True)
        ]
    taken: Counter[str] = Counter()
    for index, name in enumerate(names):  # a_b.tif beside a/b.tif
        taken[name.casefold()] += 1
        if taken[name.casefold()] > 1:
            names[index] = f"{name}_{taken[name.casefold()]}"
    return names
