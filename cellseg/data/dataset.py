"""A data set on disk, before it is read: what is there, and the test list.

A :class:`Dataset` lists its samples; each is read only when its source is asked to. Two layouts are known, see
``cellseg/data/release.py`` and ``cellseg/data/coco.py``.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from cellseg.config import DataConfig
from cellseg.data.sample import Sample
from cellseg.data.tiff import IMAGE_SUFFIXES
from cellseg.errors import UserError, raise_all
from cellseg.files import read_json

TEST_LIST, TEST_FOLDER = "test_image_name_to_ids.json", "test_release"


class Source(Protocol):
    """One annotated image on disk."""

    @property
    def name(self) -> str:
        """Unique within the data set."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that :meth:`load` reads; one that several sources share stands in each."""

    def load(self) -> Sample:
        """Read the image and its cells.

        Raises:
            UserError: with all problems of this sample.
        """


@dataclass(frozen=True)
class Dataset:
    """The annotated images under a folder."""

    root: Path
    """Absolute folder of the data set."""
    layout: str
    """``release`` or ``coco``."""
    class_names: tuple[str, ...]
    """Name of class ``i + 1``."""
    sources: tuple[Source, ...]
    """At least one, in the order of their names."""
    settings: dict[str, str]
    """What, besides the files, decides what is read: layout, instances, annotations."""
    notes: tuple[str, ...] = ()
    """What was passed over while listing: stray files, crowd annotations."""


@dataclass(frozen=True)
class TestImage:
    """An entry of the test list."""

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest makes of the name

    file_name: str
    image_id: int
    height: int
    """Pixels, as the list says."""
    width: int
    path: Path | None
    """The image file; None where it is absent."""


def open_dataset(data: DataConfig) -> Dataset:
    """List the annotated images under ``data.root``. Reads no pixels.

    With ``layout: auto`` an annotation file that is named decides for COCO; else folders ``train/<id>/image.*`` decide
    for the release layout, and a COCO JSON in the folder for COCO.

    Raises:
        UserError: no root, nothing found there, or settings that contradict each other or the files.
    """
    # Both files build Datasets, so they import this one.
    from cellseg.data.coco import find_annotations, open_coco
    from cellseg.data.release import has_release_layout, open_release

    if data.root is None:
        raise UserError("data.root: a data folder must be given, but got none. Pass --data DIR.")
    root = Path(data.root).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"{root}: the data folder must exist, but got no folder at that path. Check --data.")
    if data.layout == "release" and data.annotations is not None:
        raise UserError(
            f"data.annotations: belongs to the COCO layout, but got '{data.annotations}' with layout 'release'. "
            "Remove one of the two."
        )
    if data.layout == "release" or (data.layout == "auto" and data.annotations is None and has_release_layout(root)):
        return open_release(root, data.instances)
    if data.layout == "auto" and data.annotations is None and not find_annotations(root):
        raise UserError(
            f"{root}: must hold train/<id>/image.tif with class1.tif ... beside it, or a COCO annotation JSON, "
            "but got neither. Check --data."
        )
    if data.instances != "ids":
        raise UserError(
            f"data.instances: belongs to the release layout, but got '{data.instances}' with a COCO file. Remove it."
        )
    return open_coco(root, data.annotations)


def has_test_list(root: Path) -> bool:
    """Whether the data set names test images at all."""
    return (Path(root) / TEST_LIST).is_file()


def read_test_list(root: Path) -> list[TestImage]:
    """The test images that ``test_image_name_to_ids.json`` lists, in its order, found in ``test_release/``.

    A file is also found where only its suffix differs in case.

    Raises:
        UserError: no list, an entry without a valid file_name, id, height and width, or names or ids that repeat.
    """
    path = Path(root) / TEST_LIST
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
    """The image files in ``test_release/``, sorted; none if there is no such folder."""
    return list_images(Path(root) / TEST_FOLDER)


def list_images(folder: Path) -> list[Path]:
    """Files in ``folder`` that are images by their suffix, hidden ones left out, sorted; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def relative_name(path: Path, root: Path) -> str:
    """``path`` as text with forward slashes that is the same on every machine: relative to ``root``, else its name."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _suffix_folded(name: str) -> str:
    path = Path(name)
    return str(path.with_suffix(path.suffix.lower())) if path.suffix else name


def _entry_problems(path: Path, index: int, entry: Any) -> Iterator[str]:
    where = f"{path}: entry {index}"
    if not isinstance(entry, dict):
        yield f"{where}: must be a mapping with file_name, id, height and width, but got {entry!r}."
        return
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        yield f"{where}: file_name must be a text, but got {entry.get('file_name')!r}."
    for key, least in (("id", 0), ("height", 1), ("width", 1)):
        value = entry.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            yield f"{where}: {key} must be a whole number of at least {least}, but got {value!r}."


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result],
    items: list[Item] | tuple[Item, ...],
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Item, Result | UserError]]:
    """``(item, work(item))`` for each item, in order, worked on by one thread per CPU.

    Decoding and hashing release the GIL, so threads suffice. At most two items per thread wait to be consumed, so
    memory stays bounded however slow the consumer is. A UserError takes the place of a result; other errors are raised.

    Args:
        on_progress: called in the caller's thread with (items done, all items) after each.
    """
    workers = os.cpu_count() or 1
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            rest = iter(items)
            for index, item in enumerate(items):
                while len(waiting) < 2 * workers and (following := next(rest, None)) is not None:
                    waiting.append(pool.submit(work, following))
                try:
                    yield item, waiting.popleft().result()
                except UserError as error:
                    yield item, error
                if on_progress is not None:
                    on_progress(index + 1, len(items))
        finally:
            pool.shutdown(cancel_futures=True)
