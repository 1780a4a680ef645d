"""Data sets before they are read: lists of sources, each of which reads one sample on demand."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from cellseg.data.images import IMAGE_SUFFIXES
from cellseg.data.sample import Sample
from cellseg.device import usable_cpus
from cellseg.errors import UserError


@dataclass(frozen=True)
class TestImage:
    """A test image that a data set lists."""

    __test__: ClassVar[bool] = False  # not a test case, whatever pytest makes of the name

    file_name: str
    image_id: int
    height: int
    """Pixels, as the list says."""
    width: int
    path: Path | None
    """The image file; None where it is absent."""


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
    """What ``data.layout`` is, or was found to be."""
    class_names: tuple[str, ...]
    """Name of class ``i + 1``."""
    category_ids: tuple[int, ...]
    """The number that the annotations give class ``i + 1``: COCO's category id. Rising, unique, perhaps with gaps."""
    sources: tuple[Source, ...]
    """At least one, in the order of their names."""
    settings: dict[str, str]
    """Settings that affect how the files are read: layout, instances, annotations."""
    notes: tuple[str, ...] = ()
    """Notes on what was skipped while listing: stray files, crowd annotations."""
    validation: frozenset[str] = frozenset()
    """Names of the images that the data themselves set apart for validation, as a split."""
    tests: tuple[TestImage, ...] = ()
    """Test images that the annotations themselves set apart, as a split; those of a test list are not here."""


def list_images(folder: Path) -> list[Path]:
    """List the image files of ``folder`` by their suffix, sorted, without hidden ones; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def relative_name(path: Path, root: Path) -> str:
    """Write ``path`` relative to ``root`` with forward slashes, the same on every machine; outside of it, its name."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result],
    items: list[Item] | tuple[Item, ...],
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Item, Result | UserError]]:
    """Yield ``(item, work(item))`` for each item, in order, computed by one thread per CPU.

    Decoding and hashing release the GIL, so threads suffice. At most two items per thread wait to be consumed, so
    memory stays bounded however slow the consumer is. A UserError takes the place of a result; other errors are raised.

    Args:
        on_progress: called in the caller's thread with (items done, all items) after each.
    """
    workers = usable_cpus()
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
