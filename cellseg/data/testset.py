"""Test images of a data set: the list that names them, and the files that exist."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cellseg.config import DataConfig
from cellseg.data.dataset import open_dataset
from cellseg.data.source import TestImage, list_images
from cellseg.errors import UserError, raise_all
from cellseg.files import read_json

TEST_LIST, TEST_FOLDER = "test_image_name_to_ids.json", "test_release"


def describe_absent(images: Sequence[TestImage]) -> str | None:
    """Name the listed images without a file, up to ten, in a line; None if all exist."""
    absent = [image.file_name for image in images if image.path is None]
    if not absent:
        return None
    names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
    return f"missing: {len(absent)} of {len(images)} listed test images have no file: {names}"


def has_test_list(root: Path) -> bool:
    """Return whether the data set has a list of test images."""
    return (Path(root) / TEST_LIST).is_file()


def read_test_list(root: Path) -> list[TestImage]:
    """Read the list ``test_image_name_to_ids.json`` and find its images in ``test_release/``; keeps its order.

    A file is also found where only its suffix differs in case. Without a list, the test images are those that the
    annotations set apart as a split.

    Raises:
        UserError: neither, an entry without a valid file_name, id, height and width, or names or ids that repeat.
    """
    path = Path(root) / TEST_LIST
    if not path.exists():
        if tests := _split_tests(Path(root)):
            return list(tests)
        raise UserError(
            f"{path}: the file must exist to list test images, or the annotations must have a split 'test', but got "
            "neither. docs/data.md has the form."
        )
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path}: must be a list [{{"file_name", "id", "height", "width"}}, ...] with entries.')
    raise_all(problem for index, entry in enumerate(entries) for problem in _entry_problems(path, index, entry))
    raise_all(
        f"{path}: {key} must be unique, but got {value!r} {count} times. Remove the others."
        for key in ("file_name", "id")
        for value, count in Counter(entry[key] for entry in entries).items()
        if count > 1
    )
    present = {_suffix_folded(file.name): file for file in list_test_files(root)}
    return [
        TestImage(
            file_name=entry["file_name"],
            image_id=entry["id"],
            height=entry["height"],
            width=entry["width"],
            path=present.get(_suffix_folded(entry["file_name"])),
        )
        for entry in entries
    ]


def list_test_files(root: Path) -> list[Path]:
    """List the image files in ``test_release/``, sorted; none if there is no such folder."""
    return list_images(Path(root) / TEST_FOLDER)


def _split_tests(root: Path) -> tuple[TestImage, ...]:
    try:
        return open_dataset(DataConfig(root=str(root))).tests
    except UserError:
        return ()  # the missing list is the problem that is reported


def _suffix_folded(name: str) -> str:
    path = Path(name)
    return str(path.with_suffix(path.suffix.lower())) if path.suffix else name


def _entry_problems(path: Path, index: int, entry: Any) -> Iterator[str]:
    where = f"{path}: entry {index}"
    if not isinstance(entry, dict):
        yield f"{where}: must be a mapping with file_name, id, height and width, but got {entry!r}."
        return
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        yield f"{where}: file_name must be a string, but got {entry.get('file_name')!r}."
    for key, least in (("id", 0), ("height", 1), ("width", 1)):
        value = entry.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield f"{where}: {key} must be a whole number of at least {least}, but got {value!r}."
