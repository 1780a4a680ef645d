"""A check of a whole data set: every problem at once, and its counts."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from cellseg.config import DataConfig
from cellseg.data.channels import PlaneChoice
from cellseg.data.dataset import open_dataset
from cellseg.data.images import read_image
from cellseg.data.packed import Progress
from cellseg.data.planes import read_instances
from cellseg.data.sample import Sample
from cellseg.data.source import Dataset, Source, in_threads
from cellseg.data.statistics import DataStatistics
from cellseg.data.testset import (
    TEST_FOLDER,
    TEST_LIST,
    TestImage,
    has_test_list,
    list_test_files,
    read_test_list,
)
from cellseg.errors import UserError
from cellseg.names import counted

SHOWN = 5
"""Number of names that a message lists of many."""
SUSPICIOUS_PIECES = 5
"""Number of separate pieces from which on the only cell of a class is probably a binary mask."""


@dataclass(frozen=True)
class CheckReport:
    """The findings of :func:`check`, one line each."""

    errors: tuple[str, ...]
    """Problems for which the data, or a part of it, cannot be used."""
    warnings: tuple[str, ...]
    """Signs that the data are probably not as intended."""
    notes: tuple[str, ...]
    """Files and annotations that were skipped on purpose."""
    statistics: DataStatistics | None
    """Counts over the samples without errors; None if there are none."""


@dataclass(frozen=True)
class _Looked:
    """The facts about an image that the check keeps."""

    digest: bytes
    """Hash of the pixels."""
    size: tuple[int, int]
    boxes_N4: np.ndarray
    labels_N: np.ndarray
    warnings: tuple[str, ...] = ()


def check(data: DataConfig, on_progress: Progress | None = None) -> CheckReport:
    """Read all of a data set, training and test images, and say what is wrong with it.

    Args:
        on_progress: called with (training images read, all training images).

    Raises:
        UserError: there is no data set to check, see :func:`open_dataset`.
    """
    dataset = open_dataset(data)
    errors: list[str] = []
    warnings: list[str] = []
    looks: dict[str, _Looked] = {}
    for source, look in in_threads(_look_at_sample, dataset.sources, on_progress):
        if isinstance(look, UserError):
            errors += look.problems
        else:
            looks[source.name] = look
            warnings += look.warnings
    test_errors, test_notes, test_digests = _check_test(dataset, PlaneChoice.of(data))
    digests = {name: look.digest for name, look in looks.items()} | test_digests
    return CheckReport(
        errors=(*errors, *test_errors),
        warnings=(*warnings, *_duplicates(digests)),
        notes=(*dataset.notes, *test_notes),
        statistics=_statistics(dataset, list(looks.values())),
    )


def _look_at_sample(source: Source) -> _Looked:
    sample = source.load()
    cells = read_instances(sample.planes_PHW, sample.labels_N)
    return _Looked(
        _digest(sample.image_HWC), sample.size, cells.boxes_N4, cells.labels_N, tuple(_sample_warnings(sample))
    )


def _sample_warnings(sample: Sample) -> Iterator[str]:
    if not len(sample.labels_N):
        yield f"{sample.name}: has no cells. It trains as background; remove it if cells are visible."
    for label in np.unique(sample.labels_N):
        numbers = np.flatnonzero(sample.labels_N == label) + 1
        if len(numbers) == 1:
            _, pieces = ndimage.label((sample.planes_PHW == numbers[0]).any(axis=0), structure=np.ones((3, 3)))
            if pieces >= SUSPICIOUS_PIECES:
                yield (
                    f"{sample.name}: the only cell of class {label} is in {pieces} separate pieces. "
                    "If its map is a mask of all cells, use --instances components."
                )


def _check_test(dataset: Dataset, choice: PlaneChoice) -> tuple[list[str], list[str], dict[str, bytes]]:
    """Return errors, notes, and the digest of each test image that could be read.

    What is absent is a note: test images are for export only.
    """
    root = dataset.root
    files = list_test_files(root)
    entries: Sequence[TestImage] = dataset.tests
    if has_test_list(root):
        try:
            entries = read_test_list(root)
        except UserError as error:
            return list(error.problems), [], {}
    elif files:
        return (
            [],
            [f"{root / TEST_LIST}: is not there to list {counted(len(files), 'image')} in {TEST_FOLDER} for export."],
            {},
        )
    elif not entries:
        return [], [f"{root}: has no test images; there is nothing to export for."], {}
    errors, notes = [], []
    missing = [entry.file_name for entry in entries if entry.path is None]
    if missing:
        which = "" if len(missing) == len(entries) else f": {_some(missing)}"
        where = root / TEST_FOLDER if has_test_list(root) else root
        notes.append(
            f"{where}: missing {len(missing)} of {counted(len(entries), 'test image')}{which}; export needs them."
        )
    listed = {entry.path for entry in entries}
    unlisted = [path.name for path in files if path not in listed] if has_test_list(root) else []
    if unlisted:
        errors.append(
            f"{root / TEST_LIST}: must list every image in {TEST_FOLDER}, but lacks {len(unlisted)}: {_some(unlisted)}."
        )
    digests = {}
    present = [entry for entry in entries if entry.path is not None]
    for entry, digest in in_threads(lambda entry: _look_at_test_image(entry, choice), present):
        if isinstance(digest, UserError):
            errors += digest.problems
        else:
            digests[f"{TEST_FOLDER}/{entry.file_name}"] = digest
    return errors, notes, digests


def _look_at_test_image(entry: TestImage, choice: PlaneChoice) -> bytes:
    assert entry.path is not None
    image_HWC = read_image(entry.path, choice)
    height, width = image_HWC.shape[:2]
    if (height, width) != (entry.height, entry.width):
        raise UserError(
            f"{entry.path}: must have the size in the test list, {entry.height} x {entry.width}, "
            f"but got {height} x {width}."
        )
    return _digest(image_HWC)


def _duplicates(digests: dict[str, bytes]) -> Iterator[str]:
    names_of: dict[bytes, list[str]] = defaultdict(list)
    for name, digest in digests.items():
        names_of[digest].append(name)
    for names in names_of.values():
        if len(names) > 1:
            yield (
                f"{names[0]}: has the same pixels as {_some(names[1:])}. "
                "If copies fall into training and validation, scores look better than they are."
            )


def _statistics(dataset: Dataset, looks: list[_Looked]) -> DataStatistics | None:
    if not looks:
        return None
    return DataStatistics.collect(
        [look.boxes_N4 for look in looks],
        [look.labels_N for look in looks],
        [look.size for look in looks],
        dataset.class_names,
    )


def _digest(image_HWC: np.ndarray) -> bytes:
    return hashlib.blake2b(image_HWC.tobytes() + repr(image_HWC.shape).encode(), digest_size=16).digest()


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
