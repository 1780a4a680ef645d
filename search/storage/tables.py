"""The form of a study's tables: rows, columns, and Parquet files that say what they are."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cellseg.errors import UserError
from cellseg.files import atomic_path
from search.storage.backup import how_to_restore

FORMAT, FORMAT_VERSION = "cellseg-study", 4
"""Format 3 has all trials in ``trials.parquet``; who knows no other would miss those of the parts."""
STATES: tuple[str, ...] = ("RUNNING", "COMPLETE", "PRUNED", "FAILED", "INFEASIBLE", "INTERRUPTED")
"""Of a trial. INTERRUPTED: the search was stopped, and the trial goes on when it is continued."""

UNFINISHED = frozenset({"RUNNING", "INTERRUPTED"})
"""The states of trials that go on, now or when the search is continued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """A trial, as a row of the trial table."""

    number: int
    state: str
    """One of :data:`STATES`."""
    reason: str = ""
    """Why it ended: the ending, and what there is to say about it (for a bug its traceback); empty while it runs."""
    params: str
    """The sampled values: JSON of ``{dotted key: value}``."""
    config: str
    """The whole config it runs with: JSON of ``{dotted key: value}``."""
    seed: int
    metric: float | None = None
    """Best value of the study's metric; None before the first, and where it is not finite."""
    best_epoch: int | None = None
    """The epoch of that value, from 1."""
    epochs: int = 0
    """Epochs trained."""
    seconds: float = 0.0
    """Time in these epochs."""
    started: str | None = None
    ended: str | None = None
    """Times in UTC, ISO 8601."""
    node: str = ""
    """Name of the machine."""
    peak_memory_bytes: int | None = None
    """Most memory at any time, of the GPU where there is one."""
    parameters: int | None = None
    """Trainable parameters of the model."""
    seconds_per_epoch: float | None = None
    """Typical duration of an epoch (:func:`search.cost.seconds_per_epoch`); not known in tables of format 1."""
    gpu_seconds: float | None = None
    """Time in its epochs, each times the GPUs that the trial occupied then; not known in tables before format 3."""

    def __post_init__(self) -> None:
        assert self.state in STATES, self.state

    @property
    def ending(self) -> str:
        """The kind of its end (:data:`search.study.study.OUTCOMES`), which ``reason`` opens with."""
        return self.reason.partition(":")[0].strip()

    @property
    def detail(self) -> str:
        """The rest of ``reason``, after the kind of its end; may be empty."""
        return self.reason.partition(":")[2].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """An epoch of a trial."""

    trial: int
    epoch: int
    """From 1."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Validation metrics by name. Values that are not finite are stored as null and come back as None."""
    losses: Mapping[str, float | None] = field(default_factory=dict)
    """Mean training losses by name; not finite ones as for metrics."""
    seconds: float = 0.0
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    learning_rate: float | None = None

    @classmethod
    def of_report(cls, trial: int, report: Mapping[str, Any]) -> "EpochRow":
        """Make the row of an epoch that a trial reported: a :class:`~cellseg.training.epoch_report.EpochReport` as a
        dict."""
        return cls(
            trial=trial, **{column.name: report[column.name] for column in fields(cls) if column.name != "trial"}
        )


_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
_NUMBERS = pa.map_(_TEXT, _NUMBER)
_METADATA = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}


def _schema(row: type, types: Mapping[str, pa.DataType], nullable: Iterable[str]) -> pa.Schema:
    columns = [pa.field(column.name, types[column.name], column.name in set(nullable)) for column in fields(row)]
    return pa.schema(columns, metadata=_METADATA)


TRIAL_SCHEMA = _schema(
    TrialRow,
    dict.fromkeys(("state", "reason", "params", "config", "started", "ended", "node"), _TEXT)
    | dict.fromkeys(("number", "seed", "best_epoch", "epochs", "peak_memory_bytes", "parameters"), _COUNT)
    | dict.fromkeys(("metric", "seconds", "seconds_per_epoch", "gpu_seconds"), _NUMBER),
    nullable=(
        *("metric", "best_epoch", "started", "ended", "peak_memory_bytes", "parameters"),
        *("seconds_per_epoch", "gpu_seconds"),
    ),
)
EPOCH_SCHEMA = _schema(
    EpochRow,
    dict.fromkeys(("trial", "epoch", "peak_memory_bytes"), _COUNT)
    | dict.fromkeys(("metrics", "losses"), _NUMBERS)
    | dict.fromkeys(("seconds", "images_per_second", "learning_rate"), _NUMBER),
    nullable=("images_per_second", "peak_memory_bytes", "learning_rate"),
)


def read_table(path: Path, schema: pa.Schema, backup: Path | None = None) -> pa.Table:
    """The table of a file that :func:`write_table` wrote; columns that its older format lacks are null.

    Args:
        backup: its former generation, if there is one; the error of a damaged file names it.

    Raises:
        UserError: damaged, not ours, of a newer format, or with other columns.
    """
    try:
        # Without pyarrow's threads, which pq.read_table starts: on a busy machine they have aborted processes at exit
        # ("terminate called without an active exception"). A small file is read in 2.7 ms instead of 6.3.
        with path.open("rb") as file:
            table = pq.ParquetFile(file, pre_buffer=False).read(use_threads=False)
    except (OSError, pa.ArrowException) as error:
        detail = " ".join(str(error).split()).rstrip(".")
        remedy = how_to_restore(path, backup, pq.read_metadata)
        raise UserError(f"{path}: must be a readable Parquet file, but got: {detail}. {remedy}") from error
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    version = metadata.get("format_version", "")
    check_format(path, metadata.get("format"), int(version) if version.isdecimal() else None)
    for column in schema:
        if int(version) < FORMAT_VERSION and column.nullable and column.name not in table.schema.names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    if not table.schema.equals(schema, check_metadata=False):
        raise UserError(f"{path}: must have the columns of format {FORMAT_VERSION}, but got {table.schema.names}.")
    return table


def check_format(path: Path, name: Any, version: Any) -> None:
    """Refuse a file whose mark is not ours or of a newer format, as a UserError."""
    if name != FORMAT or not isinstance(version, int):
        raise UserError(
            f"{path}: must be written by search.run, but got a file without its mark. Choose another folder."
        )
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: must be of format {FORMAT_VERSION} or older, but got {version}. Update this software to read it."
        )


def write_table(path: Path, table: pa.Table, backup: Path | None = None) -> None:
    """Write a Parquet file with the table's metadata, as :func:`cellseg.files.atomic_path` does."""
    with atomic_path(path, backup) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def epoch_batch(row: EpochRow) -> pa.RecordBatch:
    """A batch of one row."""
    values = asdict(row)
    for name in ("metrics", "losses"):
        values[name] = {key: finite(value) for key, value in values[name].items()}
    return pa.RecordBatch.from_pylist([values], schema=EPOCH_SCHEMA)


def epoch_rows(table: pa.Table) -> list[EpochRow]:
    """The rows of an epoch table, in its order."""
    maps = ("metrics", "losses")
    return [EpochRow(**row | {name: dict(row[name]) for name in maps}) for row in table.to_pylist()]


def join_rows(rows: list[pa.RecordBatch]) -> pa.Table:
    """One table of many batches."""
    return pa.Table.from_batches(rows, EPOCH_SCHEMA).combine_chunks()


def split_rows(table: pa.Table) -> list[pa.RecordBatch]:
    """A batch for each row of an epoch table."""
    return table.replace_schema_metadata(EPOCH_SCHEMA.metadata).to_batches(max_chunksize=1)


def finite(value: float | None) -> float | None:
    """The number, or None for one that is not finite: a null cannot be taken for a score."""
    return None if value is None or not math.isfinite(value) else float(value)
