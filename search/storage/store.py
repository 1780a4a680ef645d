"""The tables of a study: ``results/<study>/``, read and written here and nowhere else.

    study.json               what was searched, on what, with which versions
    trials.parquet           a row per trial that may change or ended lately
    trials/part-00000.parquet ...   trials that ended before, see :mod:`search.storage.trial_table`
    epochs/part-00000.parquet ...   a row per trial and epoch; full parts are not written again, only the last one grows
    best.yaml                the config of the best trial, for training it once more
    checkpoints/t0007/       the checkpoints of trial 7, if it has any
    backup/                  study.json, trials.parquet and the part that grows, as they were before their last write

One process writes; any number read while it does, for every file is replaced as a whole. What was written is on the
disk, and checkpoints are deleted only after that. Nothing needs unpickling.
"""

import math
import time
from bisect import insort
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cellseg.config import gain
from cellseg.errors import UserError
from cellseg.files import read_json, write_json
from search.cost import Objective
from search.storage.backup import backup_of, how_to_restore
from search.storage.best_file import BEST_FILE, told, write_best
from search.storage.checkpoints import Checkpoints
from search.storage.lease import require_lease
from search.storage.remote import remote_study
from search.storage.tables import (
    EPOCH_SCHEMA,
    FORMAT,
    FORMAT_VERSION,
    UNFINISHED,
    EpochRow,
    TrialRow,
    check_format,
    epoch_batch,
    epoch_rows,
    finite,
    join_rows,
    read_table,
    split_rows,
    write_table,
)
from search.storage.trial_table import TrialTable, trials_file

PART_ROWS = 1024
"""Rows of a full part of the epoch table."""
PAUSES_PER_WRITE = 20
"""Where rows may wait, a write is followed by a pause of so many times its own length."""


class StudyStore:
    """The tables of one study.

    Made by :meth:`create` or :meth:`open`. What was put is on disk when the call returns, unless ``buffer_seconds``
    lets it wait: then at latest with the first put after so long, or :meth:`flush`.
    """

    def __init__(self, folder: Path, buffer_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic):
        self.folder = Path(folder)
        self._remote = remote_study(self.folder)
        self._checkpoints = Checkpoints(self.folder / "checkpoints", self._remote)
        self._buffer_seconds = buffer_seconds
        self._clock = clock
        self._written = clock()
        self._write_seconds = 0.0  # of the latest write
        self.objective = Objective("")
        """The value that ranks trials, by the study's description; an unknown metric is better when larger."""
        self._wall_clock: Callable[[], float] = lambda: 0.0
        self._trials = TrialTable(self.folder, self._read, self._write)
        self._ranked: list[tuple[float, int]] = []  # of ended trials, for best_ended
        self._rank_of: dict[int, tuple[float, int]] = {}
        self._ranked_revision = 0
        self._tail_changed = False
        self._places: dict[tuple[int, int], tuple[int, int]] = {}  # (trial, epoch) -> (part, row of it)
        self._part = 0
        self._tail: list[pa.RecordBatch] = []  # the rows of the last part, a batch of one row each
        self._best_row: TrialRow | None = None  # the one in best.yaml
        self._best_revision = 0
        self._to_keep: Collection[int] | None = None  # the argument of keep_checkpoints, until it is carried out

    @classmethod
    def create(cls, folder: Path, study: Mapping[str, Any], buffer_seconds: float = 0.0) -> "StudyStore":
        """A new study.

        Args:
            study: JSON values; see :meth:`write_study`.

        Raises:
            UserError: the folder holds a study already, or cannot be written.
        """
        store = cls(folder, buffer_seconds)
        if cls.exists(folder):
            raise UserError(f"{folder}: must not hold a study yet, but got one. Continue it, or choose another name.")
        store.write_study(study)
        store._trials.write(store.wall_seconds)
        return store

    @classmethod
    def open(
        cls, folder: Path, buffer_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> "StudyStore":
        """A study that exists, as its tables are now. To see what a writer added since, open it again.

        Args:
            clock: seconds since any moment, which tell how long rows have waited.

        Raises:
            UserError: no study, one of a newer format, or a file that is not ours or damaged.
        """
        store = cls(folder, buffer_seconds, clock)
        store.objective = _objective(store._require_study())
        # A new study gets its table after its description; a kill in between leaves none, and no backup either.
        table = trials_file(store.folder)
        if table.exists() or backup_of(table, store.folder).exists():
            spent = store._trials.read()
            store.count_time(lambda: spent)
        for path in sorted((store.folder / "epochs").glob("part-*.parquet")):
            part, table = int(path.stem.removeprefix("part-")), store._read(path, EPOCH_SCHEMA)
            rows = zip(table["trial"].to_pylist(), table["epoch"].to_pylist(), strict=True)
            store._places |= {place: (part, row) for row, place in enumerate(rows)}
            full = table.num_rows >= PART_ROWS
            store._part, store._tail = (part + 1, []) if full else (part, split_rows(table))
        return store

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder, or what it stands for, holds a study, readable or not."""
        if (remote := remote_study(Path(folder))) is not None:
            return remote.exists("study.json")
        return (Path(folder) / "study.json").exists()

    @property
    def name(self) -> str:
        """The study's name: that of its folder."""
        return self.folder.name

    @property
    def uri(self) -> str | None:
        """Where the study is, if in an object store: its folder is a local copy then."""
        return None if self._remote is None else self._remote.uri

    @property
    def place(self) -> str:
        """Where the study is, for people."""
        return self.uri or str(self.folder)

    @property
    def study(self) -> dict[str, Any]:
        """The mapping that :meth:`write_study` was given, with ``format``, ``format_version`` and ``written`` (UTC)."""
        return self._require_study()

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Replace the description of the study. ``metric`` and ``objective`` decide what :meth:`best_trials` are."""
        self.objective = _objective(study)
        written = datetime.now(UTC).isoformat()
        format_ = {"format": FORMAT, "format_version": FORMAT_VERSION, "written": written}
        write_json(self._study_file, dict(study) | format_, backup_of(self._study_file, self.folder))
        self._put(self._study_file)

    @property
    def metric(self) -> str:
        """Name of the metric whose values the trials hold."""
        return self.objective.metric

    @property
    def wall_seconds(self) -> float:
        """Wall-clock time that searches spent on the study; those of format 1 did not count it."""
        return self._wall_clock()

    @property
    def lag_seconds(self) -> float:
        """Time for which what was put has waited to be written, at most; 0 if nothing waits."""
        return self._clock() - self._written if self._trials.has_changed or self._tail_changed else 0.0

    def count_time(self, wall_clock: Callable[[], float]) -> None:
        """Take :attr:`wall_seconds` from this clock. It is written with the trials: a killed search loses the time
        since its last event."""
        self._wall_clock = wall_clock

    def put_trial(self, row: TrialRow) -> None:
        """Add the trial, or replace what is known of it."""
        self._trials.put(replace(row, metric=finite(row.metric)))
        self._write_if_due()

    def add_epoch(self, row: EpochRow) -> None:
        """Add the epoch, or replace what is known of it."""
        place = self._places.get((row.trial, row.epoch))
        batch = epoch_batch(row)
        if place is None:
            self._places[row.trial, row.epoch] = (self._part, len(self._tail))
            self._tail.append(batch)
        elif place[0] == self._part:
            self._tail[place[1]] = batch
        else:
            rows = split_rows(self._read_part(place[0]))
            rows[place[1]] = batch
            self._write_part(place[0], rows)
            return
        self._tail_changed = True
        if len(self._tail) >= PART_ROWS:  # more after a write that failed
            self._write_part(self._part, self._tail)
            if self._part > 0:  # the backup of the part before last; that of the part just filled stays for now
                backup_of(self._part_file(self._part - 1), self.folder).unlink(missing_ok=True)
            self._part, self._tail, self._tail_changed = self._part + 1, [], False
        self._write_if_due()

    def trials(self) -> list[TrialRow]:
        """All trials by number."""
        return self._trials.rows()

    def trial(self, number: int) -> TrialRow:
        """The trial with that number, which must be there."""
        return self._trials[number]

    @property
    def revision(self) -> int:
        """Grows with every trial that is put."""
        return self._trials.revision

    def changed_since(self, revision: int) -> list[TrialRow]:
        """The trials that were put after a :attr:`revision`, by number; since 0 all trials. As cheap as they are few:
        who keeps a count of many trials asks for what is new."""
        return self._trials.changed_since(revision)

    @property
    def last_number(self) -> int:
        """The largest number of a trial; -1 if there is none."""
        return self._trials.last

    def best_trials(self, k: int | None = None) -> list[TrialRow]:
        """The ``k`` trials (all by default) of best objective, best first, of equal ones the earlier; fewer if fewer
        have one.

        Best is lowest for a metric of ``cellseg.config.MINIMIZED``, highest for any other. A trial counts however it
        ended, since its best checkpoint is as good as its metric says.
        """
        ranks = [rank for row in self.trials() if (rank := self._rank(row)) is not None]
        return [self._trials[number] for _, number in sorted(ranks)[:k]]

    def best_ended(self, k: int) -> list[int]:
        """The numbers of the ``k`` best trials, as in :meth:`best_trials`, among those that have ended."""
        revision, self._ranked_revision = self._ranked_revision, self.revision
        for row in self.changed_since(revision):
            if row.number in self._rank_of:
                self._ranked.remove(self._rank_of.pop(row.number))
            if row.state not in UNFINISHED and (rank := self._rank(row)) is not None:
                self._rank_of[row.number] = rank
                insort(self._ranked, rank)
        return [number for _, number in self._ranked[:k]]

    def epochs(self, trial: int | None = None) -> list[EpochRow]:
        """The epochs of one trial, or of all, by trial and epoch. Each call reads files."""
        return epoch_rows(self.epoch_table(trial))

    def epochs_by_trial(self, trials: Collection[int] | None = None) -> dict[int, list[EpochRow]]:
        """All epochs, in order, of every trial that has any, or of those ``trials``: one read instead of one for each
        trial."""
        table = self.epoch_table()
        if trials is not None:
            table = table.filter(pc.is_in(table["trial"], pa.array(list(trials), pa.int64())))
        rows: dict[int, list[EpochRow]] = {}
        for row in epoch_rows(table):
            rows.setdefault(row.trial, []).append(row)
        return rows

    def epoch_table(self, trial: int | None = None) -> pa.Table:
        """As :meth:`epochs`, in the columns of :data:`EPOCH_SCHEMA`: for what looks at all rows of a large study."""
        parts = sorted({part for (number, _), (part, _) in self._places.items() if trial in (None, number)})
        tables = [join_rows(self._tail) if part == self._part else self._read_part(part) for part in parts]
        table = pa.concat_tables([EPOCH_SCHEMA.empty_table(), *tables])
        if trial is not None:
            table = table.filter(pc.equal(table["trial"], trial))
        return table.sort_by([("trial", "ascending"), ("epoch", "ascending")])

    def checkpoint_folder(self, number: int) -> Path:
        """Return where the checkpoints of a trial are, if it has any. The folder need not exist."""
        return self._checkpoints.folder(number)

    def keep_checkpoints(self, best: Collection[int]) -> None:
        """Keep the weights of the ``best`` trials and the resumable state of unfinished ones; delete all else, as soon
        as the tables on disk say that the trials have ended."""
        self._to_keep = best
        if not self._trials.has_changed:
            self._delete_checkpoints()

    def clear_checkpoints(self, number: int) -> None:
        """Delete the checkpoints that a new trial finds under its number: those of one that a search began and did not
        write down before it was killed."""
        self._checkpoints.clear(number)

    def has_checkpoint(self, number: int, name: str) -> bool:
        """Return whether a trial has the checkpoint ``best`` or ``last``."""
        return self._checkpoints.has(number, name)

    def fetch_checkpoint(self, number: int, name: str) -> Path:
        """Return the folder of a trial's checkpoint ``best`` or ``last``, whose files are there if it has it."""
        return self._checkpoints.fetch(number, name)

    def sweep_checkpoints(self, k: int) -> None:
        """Delete from an object store what trials put there after their end, but for the weights of the ``k`` best: a
        copy may have been on its way. Only when no trial runs."""
        self._checkpoints.sweep(self.best_ended(k), self.trials())

    def checkpoint_bytes(self, number: int) -> int:
        """Return the size of a trial's checkpoints, in bytes; 0 if it has none."""
        return self._checkpoints.size(number)

    @contextmanager
    def buffered(self, seconds: float) -> Iterator[None]:
        """For the time of the block, let what was put wait to be written: so long, or until :meth:`flush`."""
        former, self._buffer_seconds = self._buffer_seconds, seconds
        try:
            yield
        finally:
            self._buffer_seconds = former
            self.flush()

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the time of the block, let what was put wait for :meth:`flush`: what is decided together goes to disk
        together."""
        former, self._buffer_seconds = self._buffer_seconds, math.inf
        try:
            yield
        finally:
            self._buffer_seconds = former
        self._write_if_due()

    def flush(self) -> None:
        """Write everything that is still in memory only.

        Raises:
            StorageError: storage failed; what could not be written is written by the next flush.
            UserError: another process has taken the study over.
        """
        started = time.perf_counter()
        if self._tail_changed:
            self._write_part(self._part, self._tail)
            self._tail_changed = False
        if self._trials.has_changed:
            self._trials.write(self.wall_seconds)
            self.write_best_config()
        self._written = self._clock()
        self._write_seconds = time.perf_counter() - started
        self._delete_checkpoints()

    def pause(self) -> None:
        """Write what waits, in a moment in which nothing else does, unless that would make writing take more than a
        small share of the time."""
        wait = min(self._buffer_seconds, PAUSES_PER_WRITE * self._write_seconds)
        if (self._tail_changed or self._trials.has_changed) and self._clock() - self._written >= wait:
            self.flush()

    def _delete_checkpoints(self) -> None:
        """Delete those that :meth:`keep_checkpoints` does not name; the tables on disk are those in memory.

        A search that is killed before its trials' end is on disk trains them on, from their checkpoints.
        """
        if self._to_keep is not None:
            self._checkpoints.keep(self._to_keep, self.trials())
            self._to_keep = None

    @property
    def _study_file(self) -> Path:
        return self.folder / "study.json"

    def _part_file(self, part: int) -> Path:
        return self.folder / "epochs" / f"part-{part:05d}.parquet"

    def _require_study(self) -> dict[str, Any]:
        if not self._study_file.exists():
            raise UserError(f"{self.place}: must hold a study, but got no study.json. Check the name.")
        return read_study(self._study_file)

    def _read(self, path: Path, schema: pa.Schema) -> pa.Table:
        return read_table(path, schema, backup_of(path, self.folder))

    def _read_part(self, part: int) -> pa.Table:
        return self._read(self._part_file(part), EPOCH_SCHEMA)

    def _write_if_due(self) -> None:
        if self._clock() - self._written >= self._buffer_seconds:
            self.flush()

    def write_best_config(self) -> None:
        """Write ``best.yaml``, if another trial or epoch is best than this object has written.

        Only trials that changed since are compared with it: all of a large study would take tens of milliseconds.
        """
        revision, self._best_revision = self._best_revision, self.revision
        changed = self.changed_since(revision)
        former = self._best_row
        if former is None or any(row.number == former.number for row in changed):
            best = next(iter(self.best_trials(1)), None)
        else:
            best = min([former, *changed], key=lambda row: self._rank(row) or (math.inf, row.number))
        if best is not None and (former is None or told(best) != told(former)):
            write_best(self.folder, best, self.metric)
            self._put(self.folder / BEST_FILE)
        self._best_row = best

    def _rank(self, row: TrialRow) -> tuple[float, int] | None:
        """What trials are sorted by, best first; None for one without a value."""
        value = self.objective.trial_value(row)
        return None if value is None else (-gain(self.metric, value), row.number)

    def _write_part(self, part: int, rows: list[pa.RecordBatch]) -> None:
        self._write(self._part_file(part), join_rows(rows))

    def _write(self, path: Path, table: pa.Table) -> None:
        require_lease(self.folder)
        write_table(path, table, backup_of(path, self.folder))
        self._put(path)

    def _put(self, path: Path) -> None:
        """Put a file that was written into the object store, if the study is in one."""
        if self._remote is not None:
            self._remote.put(path, path.relative_to(self.folder).as_posix())


def _objective(study: Mapping[str, Any]) -> Objective:
    return Objective.of(str(study.get("metric", "")), study.get("objective"))


def read_study(path: Path) -> dict[str, Any]:
    """Read a study's description and check its format.

    Raises:
        UserError: damaged, not ours, or of a newer format.
    """
    try:
        study = read_json(path)
    except UserError as error:
        remedy = how_to_restore(path, backup_of(path, path.parent), read_json)
        raise UserError(*(f"{problem} {remedy}" for problem in error.problems)) from error
    format_ = study if isinstance(study, dict) else {}
    check_format(path, format_.get("format"), format_.get("format_version"))
    return study
