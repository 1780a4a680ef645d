"""A data set written anew in the COCO layout, with its images: what the command ``import`` leaves behind."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cellseg.data.coco_export import sample_annotations
from cellseg.data.importing.listing import EmbeddedImage, ForeignSource
from cellseg.data.packed import Progress
from cellseg.data.source import Dataset, Source, TestImage, in_threads
from cellseg.data.testset import TEST_FOLDER, TEST_LIST, has_test_list, read_test_list
from cellseg.errors import UserError, raise_all
from cellseg.files import atomic_path

ANNOTATIONS = "annotations{}.json"
"""Name of the annotation file; of those of the splits, with _train or _valid in it."""


@dataclass(frozen=True)
class Imported:
    """What was written."""

    images: int
    empty_images: int
    cells_of_class: dict[str, int]
    """Class -> cells, in the order of the classes."""
    test_images: int


def write_dataset(dataset: Dataset, folder: Path, on_progress: Progress | None = None) -> Imported:
    """Write ``folder/annotations.json`` and ``folder/images/``; with test images their list and folder too. Splits for
    training and validation have a file each.

    Masks are run lengths, so neither overlaps nor pixels are lost; image files are copied as they are. The folder
    appears when all is there, or not at all.

    Args:
        folder: new, or empty.

    Raises:
        UserError: the problems of all images, or a folder that is not empty, inside the source, or not writable.
    """
    _require_new(folder, dataset.root)
    tests = read_test_list(dataset.root) if has_test_list(dataset.root) else list(dataset.tests)
    problems: list[str] = []
    images: list[dict] = []
    annotations: list[dict] = []
    validation: set[int] = set()
    with atomic_path(folder) as temporary:
        for sample_of, sample in in_threads(lambda source: source.load(), dataset.sources, on_progress):
            if isinstance(sample, UserError):
                problems += sample.problems
                continue
            if problems:  # nothing is kept; the rest is read for its problems only
                continue
            number = len(images) + 1
            file_name = _copy_image(sample_of, sample.name, temporary / "images")
            height, width = sample.size
            validation |= {number} if sample.name in dataset.validation else set()
            images.append({"id": number, "file_name": file_name, "height": height, "width": width})
            for annotation in sample_annotations(sample, dataset.category_ids):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
        raise_all(problems)
        named = zip(dataset.category_ids, dataset.class_names, strict=True)
        categories = [{"id": category, "name": name} for category, name in named]
        everything = {image["id"] for image in images}
        parts = {"_train": everything - validation, "_valid": validation} if validation else {"": everything}
        for part, numbers in parts.items():
            content = {
                "images": [image for image in images if image["id"] in numbers],
                "annotations": [annotation for annotation in annotations if annotation["image_id"] in numbers],
                "categories": categories,
            }
            (temporary / ANNOTATIONS.format(part)).write_text(json.dumps(content), encoding="utf-8")
        if tests:
            _write_tests(tests, temporary)
        if folder.is_dir():
            folder.rmdir()
    cells = Counter(annotation["category_id"] for annotation in annotations)
    return Imported(
        images=len(images),
        empty_images=len(images) - len({annotation["image_id"] for annotation in annotations}),
        cells_of_class={
            name: cells[category] for category, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        },
        test_images=sum(test.path is not None for test in tests),
    )


def _require_new(folder: Path, source: Path) -> None:
    if folder.resolve().is_relative_to(source):
        raise UserError(f"{folder}: must not lie inside the folder that is imported, {source}. Choose another DEST.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: must be a new folder, but got one with files. Remove it, or choose another DEST.")


def _copy_image(source: Source, name: str, folder: Path) -> str:
    """Copy the image of a sample; its name below ``folder``."""
    image = source.item.image if isinstance(source, ForeignSource) else source.files[0]
    suffix = Path(image.name).suffix
    place = folder / f"{name}{suffix}"
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, EmbeddedImage):
        place.write_bytes(image.read_bytes())
    else:
        shutil.copyfile(image, place)
    return f"{name}{suffix}"


def _write_tests(tests: list[TestImage], folder: Path) -> None:
    """Copy test images side by side, and list them. Where names repeat, they begin with their folders'."""
    unique = len({Path(test.file_name).name for test in tests}) == len(tests)
    entries = []
    (folder / TEST_FOLDER).mkdir()
    for test in tests:
        name = Path(test.file_name).name if unique else test.file_name.replace("/", "_")
        entries.append({"file_name": name, "id": test.image_id, "height": test.height, "width": test.width})
        if test.path is not None:
            shutil.copyfile(test.path, folder / TEST_FOLDER / name)
    (folder / TEST_LIST).write_text(json.dumps(entries, indent=2), encoding="utf-8")
