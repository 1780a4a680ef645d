"""The table of trials in parts: what is written again, what is not, and what a kill leaves."""

import multiprocessing
import random
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cellseg.errors import UserError
from search.storage import store as store_module
from search.storage import trial_table
from search.storage.find import latest_study
from search.storage.store import StudyStore
from search.storage.tables import TrialRow


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(trial_table, "PART_ROWS", 4)


def row(number: int, state: str = "COMPLETE", **changes) -> TrialRow:
    values = {"params": "{}", "config": "{}", "seed": 0, "started": "2026-01-01T00:00:00+00:00"}
    return TrialRow(number=number, state=state, **values | changes)


def in_file(path: Path) -> list[int]:
    return pq.read_table(path.open("rb"))["number"].to_pylist()


@pytest.fixture
def store(tmp_path) -> StudyStore:
    return StudyStore.create(tmp_path / "study", {"metric": "m"})


def parts(store: StudyStore) -> list[Path]:
    return sorted((store.folder / "trials").glob("*"))


def test_ended_trials_move_into_parts_that_are_written_once(store):
    store.put_trial(row(0, "RUNNING"))
    for number in range(1, 7):
        store.put_trial(row(number))
    (part,) = parts(store)
    assert in_file(part) == [1, 2, 3, 4]
    assert in_file(store.folder / "trials.parquet") == [0, 5, 6]
    before = part.stat().st_ino
    for number in range(7, 12):
        store.put_trial(row(number))
    assert part.stat().st_ino == before
    assert [in_file(part) for part in parts(store)] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert in_file(store.folder / "trials.parquet") == [0, 9, 10, 11]
    again = StudyStore.open(store.folder)
    assert again.trials() == store.trials() == [row(0, "RUNNING"), *map(row, range(1, 12))]


def test_a_flush_of_many_ended_trials_fills_several_parts(tmp_path):
    store = StudyStore.create(tmp_path / "s", {}, buffer_seconds=1000)
    for number in range(11):
        store.put_trial(row(number))
    for number in (11, 12, 13):
        store.flush()
        store.put_trial(row(number, "RUNNING"))
    assert [in_file(part) for part in parts(store)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    store.flush()
    assert in_file(store.folder / "trials.parquet") == [8, 9, 10, 11, 12, 13]


def test_a_reopened_study_goes_on_with_its_parts(store):
    for number in range(6):
        store.put_trial(row(number))
    again = StudyStore.open(store.folder)
    for number in range(6, 11):
        again.put_trial(row(number))
    assert [in_file(part) for part in parts(store)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert in_file(store.folder / "trials.parquet") == [8, 9, 10]
    assert StudyStore.open(store.folder).trials() == [row(number) for number in range(11)]


def test_a_row_of_a_part_that_is_put_again_counts(store):
    for number in range(6):
        store.put_trial(row(number))
    store.put_trial(row(1, metric=9.0))
    assert StudyStore.open(store.folder).trials()[1].metric == 9.0
    for number in range(6, 9):
        store.put_trial(row(number))
    assert [in_file(part) for part in parts(store)] == [[0, 1, 2, 3], [1, 4, 5, 6]]
    again = StudyStore.open(store.folder)
    assert in_file(store.folder / "trials.parquet") == [7, 8]
    assert [trial.number for trial in again.trials()] == list(range(9))
    assert again.trials()[1].metric == 9.0, "the later part tells the truth"


class Killed(BaseException):
    """Nothing that the store could catch."""


def test_whenever_it_is_killed_no_row_is_lost_and_none_is_there_twice(tmp_path, monkeypatch):
    write, draws = store_module.write_table, random.Random(0)
    left = 0

    def counted(*arguments):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write(*arguments)

    monkeypatch.setattr(store_module, "write_table", counted)
    left = 1
    store = StudyStore.create(tmp_path / "s", {})
    known: dict[int, TrialRow] = {}
    for number in range(60):
        for state in ("RUNNING", "COMPLETE"):
            while True:
                left = draws.choice([0, 1, 2, 3])
                try:
                    store.put_trial(row(number, state))
                    break
                except Killed:
                    store = StudyStore.open(tmp_path / "s")
                    assert known.items() <= {trial.number: trial for trial in store.trials()}.items() or (
                        store.trial(number) == row(number, state)
                    )
            known[number] = row(number, state)
    again = StudyStore.open(tmp_path / "s")
    assert again.trials() == [row(number) for number in range(60)]
    assert sum(len(in_file(part)) for part in parts(again)) <= 60, "repeated kills fill no further parts"


def test_the_former_generation_of_the_table_never_hides_the_end_of_a_trial(store):
    """Restored from its backup at any moment, the table knows every trial that a part holds as ended."""
    store.put_trial(row(0, "RUNNING"))
    for number in range(1, 14):
        store.put_trial(row(number, "RUNNING"))
        store.put_trial(row(number))
        ended = {number for part in parts(store) for number in in_file(part)}
        former = pq.read_table((store.folder / "backup" / "trials.parquet").open("rb")).to_pylist()
        assert all(trial["state"] == "COMPLETE" for trial in former if trial["number"] in ended)


def test_a_part_that_is_gone_or_damaged_is_named(store):
    for number in range(11):
        store.put_trial(row(number))
    first, second = parts(store)
    second.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"trials/part-00001.parquet: must be a readable .*Restore it from a copy"):
        StudyStore.open(store.folder)
    second.unlink()
    with pytest.raises(UserError, match=r"trials/part-00001.parquet: must be a readable"):
        StudyStore.open(store.folder)
    first.unlink()
    with pytest.raises(UserError, match=r"trials/part-00000.parquet: must be a readable"):
        StudyStore.open(store.folder)


def test_a_study_of_format_3_with_more_trials_than_a_part_is_continued_without_loss(store, monkeypatch):
    monkeypatch.setattr(trial_table, "PART_ROWS", 1000)
    states = ["COMPLETE", "PRUNED", "INTERRUPTED"]
    rows = [row(number, states[number % 3], metric=number / 10) for number in range(9)]
    for trial in rows:
        store.put_trial(trial)
    path = store.folder / "trials.parquet"
    table = pq.read_table(path.open("rb"))
    old = {key: value for key, value in table.schema.metadata.items() if key != trial_table.PARTS}
    pq.write_table(table.replace_schema_metadata(old | {b"format_version": b"3"}), path)
    monkeypatch.setattr(trial_table, "PART_ROWS", 4)
    again = StudyStore.open(store.folder)
    assert again.trials() == rows
    again.put_trial(replace(rows[2], state="COMPLETE"))
    again.put_trial(row(9))
    again.put_trial(row(10))
    new = [*rows[:2], replace(rows[2], state="COMPLETE"), *rows[3:], row(9), row(10)]
    assert StudyStore.open(store.folder).trials() == new
    assert len(parts(again)) == 2


def test_a_study_whose_results_are_all_in_parts_has_results(tmp_path):
    done = StudyStore.create(tmp_path / "done", {"metric": "m"})
    for number in range(4):
        done.put_trial(row(number, metric=0.5))
    for _ in range(2):
        done.put_trial(row(4, "RUNNING"))
    assert in_file(done.folder / "trials.parquet") == [4]
    StudyStore.create(tmp_path / "new", {}).put_trial(row(0, "RUNNING", started="2030-01-01T00:00:00+00:00"))
    assert latest_study(tmp_path).name == "done"


def _read_until_told(folder, stop, ended, failures) -> None:
    while not stop.is_set():
        least = ended.value
        try:
            seen = [trial.number for trial in StudyStore.open(folder).trials()]
            assert seen == list(range(len(seen))) and len(seen) >= least, (seen, least)
        except Exception as error:
            failures.put(repr(error))
            return


def test_a_reader_misses_no_row_that_moves_into_a_part(store):
    context = multiprocessing.get_context("fork")
    stop, ended, failures = context.Event(), context.Value("i", 0), context.Queue()
    reader = context.Process(target=_read_until_told, args=(store.folder, stop, ended, failures))
    reader.start()
    for number in range(150):
        store.put_trial(row(number))
        ended.value = number + 1
    stop.set()
    reader.join(20)
    assert reader.exitcode == 0
    assert failures.empty(), failures.get()


def test_in_a_pause_rows_are_written_unless_writing_takes_too_much_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    store = StudyStore.create(tmp_path / "s", {})
    store = StudyStore.open(tmp_path / "s", clock=lambda: now[0])

    def on_disk() -> int:
        return len(StudyStore.open(tmp_path / "s").trials())

    with store.buffered(1.0):
        store.flush()
        store._write_seconds = 0.01  # a write of so long is followed by a pause of 0.2 s
        store.put_trial(row(0))
        now[0] = 0.19
        store.pause()
        assert on_disk() == 0
        now[0] = 0.21
        store.pause()
        assert on_disk() == 1
        store._write_seconds = 10.0
        store.put_trial(row(1))
        now[0] = 1.2
        store.pause()
        assert on_disk() == 1
        now[0] = 1.22
        store.pause()
        assert on_disk() == 2, "however long a write takes, rows wait no longer than they may"
