"""A data set as one Arrow table: packed once, memory-mapped afterwards, and shared without copying.

A row is an image. The table explains itself: its schema metadata hold the format version, the fingerprint of the input,
the names and category ids of the classes and the reading settings, so a table that travelled through an object store is
complete.

Shape suffixes: H height, W width, P planes, N cells, I images, K classes, 4 = x1, y1, x2, y2.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.config import DataConfig
from cellseg.data.dataset import open_dataset
from cellseg.data.groups import read_groups
from cellseg.data.planes import read_instances
from cellseg.data.sample import Sample
from cellseg.data.source import Dataset, in_threads, relative_name
from cellseg.data.split import Split, split
from cellseg.data.statistics import DataStatistics, count_labels
from cellseg.errors import UserError, raise_all
from cellseg.files import atomic_path
from cellseg.owners import is_gone, owner_mark

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 2
"""Raise it when the columns change, or when the same files would be read into other pixels or cells."""

CACHE = "CELLSEG_CACHE"
"""Environment variable: the folder of packed files."""

SCRATCH_SECONDS = 24 * 3600.0
"""Nobody packs a sample for so long."""
_OWNER = "owner"
"""File beside the one that is being packed: whose it is."""

Progress = Callable[[int, int], None]


class PackedDataset:
    """Images and cells of a data set, as views into an Arrow table. Pickles as that table."""

    def __init__(self, table: "pa.Table"):
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        self.table = table
        self.fingerprint: str = metadata["fingerprint"]
        """Hash of all input files and reading settings, 32 hexadecimal digits."""
        self.class_names: tuple[str, ...] = tuple(json.loads(metadata["class_names"]))
        ids = json.loads(metadata["category_ids"]) if "category_ids" in metadata else range(1, self.num_classes + 1)
        self.category_ids: tuple[int, ...] = tuple(ids)
        """The number that the annotations give class ``i + 1``; ``i + 1`` itself where the table names none."""
        self.groups: tuple[str, ...] | None = tuple(json.loads(metadata["groups"])) if "groups" in metadata else None
        """The group of each image, which shares a fold; None: there are no groups."""
        given = metadata.get("validation")
        self.validation: tuple[bool, ...] | None = None if given is None else tuple(json.loads(given))
        """Whether the data themselves set each image apart for validation; None: they set none apart."""
        self.settings: dict[str, str] = json.loads(metadata["settings"])
        """Settings that the files were read with, see :class:`cellseg.data.source.Dataset`."""

    def __reduce__(self) -> tuple:
        return type(self), (self.table,)

    def with_groups(self, groups: tuple[str, ...]) -> "PackedDataset":
        """The same images with the group of each, and with another fingerprint: they split into other folds."""
        content = json.dumps(groups)
        digest = hashlib.blake2b((self.fingerprint + content).encode(), digest_size=16).hexdigest()
        metadata = {**(self.table.schema.metadata or {}), b"groups": content.encode(), b"fingerprint": digest.encode()}
        return PackedDataset(self.table.replace_schema_metadata(metadata))

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> Sample:
        """Return the sample in row ``index``. Its arrays are read-only views; copy before changing them."""
        height, width = self.sizes[index]
        return Sample(
            name=self.names[index],
            image_HWC=self._values("image", index).reshape(height, width, 3),
            planes_PHW=self._values("planes", index).reshape(-1, height, width),
            labels_N=self.labels(index),
        )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each image, unique."""
        return tuple(self.table["name"].to_pylist())

    @cached_property
    def sizes(self) -> np.ndarray:
        """(I, 2) int64: height and width of each image, px."""
        return np.stack([self.table["height"].to_numpy(), self.table["width"].to_numpy()], axis=1).astype(np.int64)

    @cached_property
    def plane_pixels(self) -> np.ndarray:
        """(I,) int64: pixels of all planes of each image."""
        import pyarrow.compute as pc

        return pc.list_value_length(self.table["planes"]).to_numpy()

    def boxes(self, index: int) -> np.ndarray:
        """Return (N, 4) float32: x1, y1, x2, y2 with exclusive right and bottom edge, px; cell ``i + 1`` in row i."""
        return self._values("boxes", index).reshape(-1, 4)

    def labels(self, index: int) -> np.ndarray:
        """Return (N,) int64: class of cell ``i + 1``, from 1."""
        return self._values("labels", index)

    @cached_property
    def label_counts(self) -> np.ndarray:
        """(I, K) int64: cells of class ``k + 1`` in each image."""
        return count_labels([self.labels(index) for index in range(len(self))], self.num_classes)

    def split(self, data: DataConfig) -> Split:
        """Return the images for training and validation, as :func:`cellseg.data.split.split` finds them.

        Raises:
            UserError: too few images, groups or given validation images for ``data``.
        """
        return split(self.label_counts, data, self.groups, self.validation)

    def statistics(self) -> DataStatistics:
        """Count over all images, without touching a pixel."""
        rows = range(len(self))
        return DataStatistics.collect(
            [self.boxes(index) for index in rows], [self.labels(index) for index in rows], self.sizes, self.class_names
        )

    def _values(self, column: str, index: int) -> np.ndarray:
        return self.table[column][index].values.to_numpy(zero_copy_only=True)


def open_packed(data: DataConfig, cache: Path | None = None, on_progress: Progress | None = None) -> PackedDataset:
    """Open the packed data set that ``data`` describes; packs it unless the cache holds it for exactly these files.

    Args:
        cache: folder of packed files. None: ``$CELLSEG_CACHE`` or ``~/.cache/cellseg``. A changed input replaces its
            own old file there; one that is damaged counts as absent.
        on_progress: called with (images packed, all images) while packing.

    Raises:
        UserError: see :func:`open_dataset`; the problems of all samples; an image without a group; or the cache cannot
            be written.
    """
    dataset = open_dataset(data)
    # First: to pack may take long. Groups are no part of what is packed, as they change no pixel.
    groups = None if data.groups is None else read_groups(data, [source.name for source in dataset.sources])
    identity = fingerprint(dataset)
    path = cache_path(dataset, default_cache() if cache is None else Path(cache))
    packed = _open_cached(path, identity)
    if packed is None:
        pack(dataset, path, identity, on_progress)
        packed = _open_cached(path, identity)
        assert packed is not None, f"{path} was just written"
    return packed if groups is None else packed.with_groups(groups)


def pack(dataset: Dataset, path: Path, identity: str, on_progress: Progress | None = None) -> None:
    """Read all samples and write them to ``path``, atomically. At most a few samples are in memory at a time.

    Args:
        identity: the data set's :func:`fingerprint`.

    Raises:
        UserError: the problems of all samples, or ``path`` cannot be written; the old file, if any, is left as it was.
    """
    import pyarrow as pa

    _require_writable(path.parent)
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "fingerprint": identity,
        "class_names": json.dumps(dataset.class_names),
        "category_ids": json.dumps(dataset.category_ids),
        "settings": json.dumps(dataset.settings),
    }
    if dataset.validation:
        metadata["validation"] = json.dumps([source.name in dataset.validation for source in dataset.sources])
    schema = _schema().with_metadata(metadata)
    problems: list[str] = []
    sweep_scratch(path.parent)
    with atomic_path(path) as temporary:
        (temporary.parent / _OWNER).write_text(owner_mark(), encoding="utf-8")
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for _, sample in in_threads(lambda source: source.load(), dataset.sources, on_progress):
                if isinstance(sample, UserError):
                    problems += sample.problems
                elif not problems:  # else nothing is kept; the rest is read for its problems only
                    writer.write_batch(_row(sample, schema))
        raise_all(problems)


def sweep_scratch(cache: Path) -> None:
    """Remove from the cache what processes left that were killed while they packed: it is as large as the data set.

    Those of this machine are known to be gone; of another, after :data:`SCRATCH_SECONDS` without a sign of life.
    """
    for scratch in cache.glob(".*.arrow.*"):
        with contextlib.suppress(OSError):
            owner = scratch / _OWNER
            newest = max(file.stat().st_mtime for file in (scratch, *scratch.iterdir()))
            if time.time() - newest > SCRATCH_SECONDS or is_gone(owner.read_text(encoding="utf-8")):
                shutil.rmtree(scratch, ignore_errors=True)


def fingerprint(dataset: Dataset) -> str:
    """Hash the names and bytes of all files and the reading settings: the same on every machine.

    A folder counts with all files in it. An unreadable file counts with its name; loading it says what is wrong.
    """
    files = {relative_name(path, dataset.root): path for source in dataset.sources for path in source.files}
    total = hashlib.blake2b(json.dumps(dataset.settings, sort_keys=True).encode(), digest_size=16)
    for (name, _), digest in in_threads(lambda item: _file_digest(item[1]), sorted(files.items())):
        assert isinstance(digest, bytes)
        total.update(hashlib.blake2b(name.encode()).digest() + digest)
    return total.hexdigest()


def default_cache() -> Path:
    """Return ``$CELLSEG_CACHE``, or ``~/.cache/cellseg``."""
    folder = os.environ.get(CACHE)
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "cellseg"


def cache_path(dataset: Dataset, cache: Path) -> Path:
    """Return the packed file of a data set: one for each root and way of reading it, whatever the files hold."""
    key = json.dumps([str(dataset.root), dataset.settings], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    readable = re.sub(r"[^\w.-]", "_", dataset.root.name)[:40]
    return cache / f"{readable}-{digest}.arrow"


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("name", pa.string()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            # Typed lists: views of them are aligned and, unlike views of large_binary, no copies. "Large" ones have
            # 64-bit offsets, so a column may exceed 2 GiB.
            ("image", pa.large_list(pa.uint8())),  # H * W * 3
            ("planes", pa.large_list(pa.uint16())),  # P * H * W
            ("labels", pa.large_list(pa.int64())),
            ("boxes", pa.large_list(pa.float32())),  # N * 4
        ]
    )


def _row(sample: Sample, schema: Any) -> Any:
    """Build a record batch of one sample, of views where Arrow can view numpy."""
    import pyarrow as pa

    cells = read_instances(sample.planes_PHW, sample.labels_N)
    assert len(cells.numbers_N) == len(sample.labels_N), f"{sample.name}: cells 1..N must all be in the planes"
    height, width = sample.size
    columns = [
        pa.array([sample.name]),
        pa.array([height], pa.int32()),
        pa.array([width], pa.int32()),
        _one_list(sample.image_HWC),
        _one_list(sample.planes_PHW),
        _one_list(sample.labels_N),
        _one_list(cells.boxes_N4),
    ]
    return pa.record_batch(columns, schema=schema)


def _one_list(values: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array([0, values.size], pa.int64()), pa.array(values.ravel()))


def _open_cached(path: Path, identity: str) -> PackedDataset | None:
    """Memory-map the file; None if it is absent, damaged, of another format or made from other files."""
    import pyarrow as pa

    # pa.ArrowInvalid is a ValueError; a missing key or column is a KeyError.
    with contextlib.suppress(OSError, ValueError, KeyError, pa.ArrowException):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        same_format = (table.schema.metadata or {}).get(b"format_version") == str(FORMAT_VERSION).encode()
        packed = PackedDataset(table)
        if same_format and packed.fingerprint == identity and table.schema.equals(_schema()):
            return packed
    return None


def _file_digest(path: Path) -> bytes:
    if path.is_dir():
        names = sorted(inner.relative_to(path).as_posix() for inner in path.rglob("*") if inner.is_file())
        digests = [hashlib.blake2b(name.encode()).digest() + _file_digest(path / name) for name in names]
        return hashlib.blake2b(b"folder" + b"".join(digests)).digest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return b"unreadable"


def _require_writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK | os.X_OK):
            return
        reason = "Permission denied"
    except OSError as error:
        reason = str(error.strerror)
    raise UserError(
        f"{cache}: the folder for packed data must be writable, but got '{reason}'. Set CELLSEG_CACHE to another one."
    )
