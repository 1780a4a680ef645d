"""The table of trials, in parts: what changes is small, and what is finished is not written again.

    trials.parquet               the trials that run or wait, and those that ended lately
    trials/part-00000.parquet    trials that ended before; a part is written once

Ended trials move into a part when there are enough of them, and leave ``trials.parquet`` with its next write. In
between they are in both, so that neither a kill nor a reader at any moment misses one. Where rows differ,
``trials.parquet`` tells the truth, then the latest part.
"""

from bisect import insort
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path

import pyarrow as pa

from search.storage.tables import TRIAL_SCHEMA, UNFINISHED, TrialRow

PART_ROWS = 1024
"""Rows of a part."""
WALL_SECONDS = b"wall_seconds"
"""Metadata of ``trials.parquet``: the wall-clock time that searches spent on the study."""
PARTS = b"parts"
"""Metadata of ``trials.parquet``: the number of parts that belong to it. There may be one more."""

Read = Callable[[Path, pa.Schema], pa.Table]
Write = Callable[[Path, pa.Table], None]


def trials_file(study: Path) -> Path:
    """Return where the table is whose rows change; ``study`` is the study's folder."""
    return study / "trials.parquet"


def part_file(study: Path, part: int) -> Path:
    """Return where a part of ended trials is."""
    return study / "trials" / f"part-{part:05d}.parquet"


def read_trials(study: Path, read: Read) -> tuple[pa.Table, list[pa.Table]]:
    """Read ``trials.parquet`` and the parts, in this order: a writer that moves rows in between hides none.

    Raises:
        UserError: one of them is damaged or missing.
    """
    changing = read(trials_file(study), TRIAL_SCHEMA)
    count = int(changing.schema.metadata.get(PARTS, 0))
    while part_file(study, count).exists():  # written after trials.parquet, or just before its writer was killed
        count += 1
    return changing, [read(part_file(study, part), TRIAL_SCHEMA) for part in range(count)]


class TrialTable:
    """All trials of a study, in memory and on disk.

    Args:
        study: the study's folder.
        read: reads a table of a schema.
        write: replaces a table durably.
    """

    def __init__(self, study: Path, read: Read, write: Write):
        self._study, self._read, self._write = study, read, write
        self._rows: dict[int, TrialRow] = {}
        self._numbers: list[int] = []  # of all rows, in order
        self._changing: set[int] = set()  # of the rows that trials.parquet holds with its next write
        self._num_parts = 0
        # Trials that trials.parquet has as ended. Only those that its former generation has too move into a part: a
        # table restored from its backup must not call one of them running.
        self._ended: frozenset[int] = frozenset()
        self.revision = 0
        """Grows with every row that is put."""
        self._changes: dict[int, int] = {}  # trial -> the revision that put it last, in this order
        self.has_changed = False
        """Whether :meth:`write` has something to write."""

    def read(self) -> float:
        """Read all rows; return the wall-clock time that was written with them, in seconds."""
        changing, parts = read_trials(self._study, self._read)
        for table in parts:
            self._rows |= {row["number"]: TrialRow(**row) for row in table.to_pylist()}
        for row in (TrialRow(**row) for row in changing.to_pylist()):
            if self._rows.get(row.number) != row:
                self._rows[row.number] = row
                self._changing.add(row.number)
        self._numbers = sorted(self._rows)
        self.revision += 1
        self._num_parts = len(parts)
        return float(changing.schema.metadata.get(WALL_SECONDS, 0.0))

    def put(self, row: TrialRow) -> None:
        """Add the trial, or replace what is known of it."""
        if row.number not in self._rows:
            insort(self._numbers, row.number)
        self._rows[row.number] = row
        self._changing.add(row.number)
        self.has_changed = True
        self.revision += 1
        self._changes.pop(row.number, None)
        self._changes[row.number] = self.revision

    def write(self, wall_seconds: float) -> None:
        """Write the rows that may change, and move ended ones into a part if they are enough for one.

        Raises:
            StorageError: storage failed; the next call writes what is missing.
        """
        numbers = sorted(self._changing)
        metadata = {WALL_SECONDS: str(wall_seconds).encode(), PARTS: str(self._num_parts).encode()}
        self._write(trials_file(self._study), self._table(numbers, metadata))
        self.has_changed = False
        ended = [number for number in numbers if self._rows[number].state not in UNFINISHED]
        former, self._ended = self._ended, frozenset(ended)
        movable = [number for number in ended if number in former]
        for start in range(0, len(movable) - PART_ROWS + 1, PART_ROWS):
            part = movable[start : start + PART_ROWS]
            self._write(part_file(self._study, self._num_parts), self._table(part, {}))
            self._num_parts += 1
            self._changing.difference_update(part)

    def _table(self, numbers: Iterable[int], metadata: dict[bytes, bytes]) -> pa.Table:
        rows = [self._rows[number] for number in numbers]
        columns = {name: [getattr(row, name) for row in rows] for name in TRIAL_SCHEMA.names}
        return pa.Table.from_pydict(columns, schema=TRIAL_SCHEMA.with_metadata(TRIAL_SCHEMA.metadata | metadata))

    def __getitem__(self, number: int) -> TrialRow:
        """The trial with that number, which must be there."""
        return self._rows[number]

    def rows(self) -> list[TrialRow]:
        """All trials by number."""
        return [self._rows[number] for number in self._numbers]

    def changed_since(self, revision: int) -> list[TrialRow]:
        """The trials that were put after a revision, by number; all of them since 0, also those that were read."""
        if revision == 0:
            return self.rows()
        recent = takewhile(lambda change: change[1] > revision, reversed(self._changes.items()))
        return [self._rows[number] for number in sorted(number for number, _ in recent)]

    @property
    def last(self) -> int:
        """The largest number; -1 if there is no trial."""
        return self._numbers[-1] if self._numbers else -1
