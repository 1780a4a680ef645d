"""The tables of a study on disk."""

import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cellseg.errors import UserError
from search.storage import store as store_module
from search.storage.find import latest_study, list_studies
from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow


def trial(number: int, **changes) -> TrialRow:
    row = TrialRow(
        number=number,
        state="COMPLETE",
        reason="epochs",
        params='{"optim.lr": 0.1}',
        config='{"optim.lr": 0.1}',
        seed=number,
        metric=0.5,
        best_epoch=3,
        epochs=4,
        seconds=8.5,
        started="2026-01-01T00:00:00+00:00",
        ended="2026-01-01T00:01:00+00:00",
        node="host",
        peak_memory_bytes=10**10,
        parameters=44_000_000,
    )
    return replace(row, **changes)


def epoch(trial: int, number: int, **changes) -> EpochRow:
    row = EpochRow(
        trial=trial,
        epoch=number,
        metrics={"segm/AP50": 0.25, "PQ": 0.5},
        losses={"loss_mask": 1.5},
        seconds=2.0,
        images_per_second=3.0,
        peak_memory_bytes=5,
        learning_rate=1e-3,
    )
    return replace(row, **changes)


@pytest.fixture
def store(tmp_path) -> StudyStore:
    return StudyStore.create(tmp_path / "study", {"name": "study", "seed": 3})


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(store_module, "PART_ROWS", 4)


def test_what_was_put_is_read_again(store):
    running = TrialRow(number=1, state="RUNNING", params="{}", config="{}", seed=9)
    store.put_trial(trial(0))
    store.put_trial(running)
    store.add_epoch(epoch(0, 1))
    store.add_epoch(EpochRow(trial=1, epoch=1))
    for again in (store, StudyStore.open(store.folder)):
        assert again.trials() == [trial(0), running]
        assert again.epochs() == [epoch(0, 1), EpochRow(trial=1, epoch=1)]
        assert again.epochs(1) == [EpochRow(trial=1, epoch=1)]
        assert again.epochs(2) == []
        assert again.epochs_by_trial() == {0: [epoch(0, 1)], 1: [EpochRow(trial=1, epoch=1)]}


def test_a_new_study_is_empty_and_described(store):
    again = StudyStore.open(store.folder)
    assert (again.trials(), again.epochs(), again.best_trials(3)) == ([], [], [])
    assert (again.study["seed"], again.study["format"], again.study["format_version"]) == (3, "cellseg-study", 4)
    assert again.name == "study"


def test_a_trial_is_replaced_by_its_number_and_an_epoch_by_trial_and_number(store):
    store.put_trial(trial(0, state="RUNNING"))
    store.put_trial(trial(0))
    store.add_epoch(epoch(0, 1, seconds=1.0))
    store.add_epoch(epoch(0, 2))
    store.add_epoch(epoch(0, 1, seconds=9.0))
    again = StudyStore.open(store.folder)
    assert again.trials() == [trial(0)]
    assert [(row.epoch, row.seconds) for row in again.epochs()] == [(1, 9.0), (2, 2.0)]


def test_full_parts_are_not_written_again(store, small_parts):
    rows = [epoch(number % 3, number // 3 + 1) for number in range(11)]
    for row in rows[:4]:
        store.add_epoch(row)
    first = store.folder / "epochs" / "part-00000.parquet"
    before = first.stat().st_ino
    for row in rows[4:]:
        store.add_epoch(row)
    assert first.stat().st_ino == before
    parts = sorted(path.name for path in (store.folder / "epochs").iterdir())
    assert parts == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert [pq.read_metadata(store.folder / "epochs" / name).num_rows for name in parts] == [4, 4, 3]
    expected = sorted(rows, key=lambda row: (row.trial, row.epoch))
    assert store.epochs() == StudyStore.open(store.folder).epochs() == expected


def test_a_row_of_a_full_part_can_be_replaced(store, small_parts):
    for number in range(1, 7):
        store.add_epoch(epoch(0, number))
    store.add_epoch(epoch(0, 2, seconds=99.0))
    assert [row.seconds for row in StudyStore.open(store.folder).epochs()] == [2.0, 99.0, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("rows_before", [2, 3, 4, 5, 8])
def test_a_reopened_study_is_continued_where_it_ended(store, small_parts, rows_before):
    for number in range(1, rows_before + 1):
        store.add_epoch(epoch(0, number))
    again = StudyStore.open(store.folder)
    for number in range(rows_before, rows_before + 4):
        again.add_epoch(epoch(0, number, seconds=5.0))
    rows = StudyStore.open(store.folder).epochs()
    assert [row.epoch for row in rows] == list(range(1, rows_before + 4))
    assert [row.seconds for row in rows] == [2.0] * (rows_before - 1) + [5.0] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_null(store, bad):
    store.put_trial(trial(0, metric=bad))
    store.add_epoch(epoch(0, 1, metrics={"segm/AP50": bad, "PQ": 0.5}, losses={"loss": bad}))
    again = StudyStore.open(store.folder)
    assert again.trials()[0].metric is None
    assert again.best_trials(1) == []
    assert again.epochs()[0].metrics == {"segm/AP50": None, "PQ": 0.5}
    assert again.epochs()[0].losses == {"loss": None}


def test_the_best_trials_are_those_of_highest_metric_however_they_ended(store):
    for number, (metric, state) in enumerate(
        [(0.2, "COMPLETE"), (None, "FAILED"), (0.7, "PRUNED"), (0.7, "COMPLETE"), (0.9, "RUNNING")]
    ):
        store.put_trial(trial(number, metric=metric, state=state))
    assert [row.number for row in store.best_trials(3)] == [4, 2, 3]
    assert [row.number for row in store.best_trials(10)] == [4, 2, 3, 0]


@pytest.mark.parametrize(("metric", "best"), [("loss/validation", [2, 1, 3]), ("segm/AP", [3, 1, 2]), ("m", [3, 1, 2])])
def test_lower_is_better_for_a_loss_whether_written_or_read(tmp_path, metric, best):
    store = StudyStore.create(tmp_path / "s", {"metric": metric})
    for number, value in enumerate([None, 0.5, 0.2, 0.9, float("nan")]):
        store.put_trial(trial(number, metric=value))
    for again in (store, StudyStore.open(store.folder)):
        assert again.metric == metric
        assert [row.number for row in again.best_trials()] == best
    assert store.trials()[2].metric == 0.2, "the table keeps the value as it is"


def test_of_equal_losses_the_earlier_is_better(tmp_path):
    store = StudyStore.create(tmp_path / "s", {"metric": "loss/validation"})
    for number, value in enumerate([0.5, 0.2, 0.2]):
        store.put_trial(trial(number, metric=value))
    assert [row.number for row in store.best_trials(2)] == [1, 2]


def test_a_state_that_does_not_exist_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        trial(0, state="DONE")


def test_buffered_rows_are_on_disk_after_flush(tmp_path):
    store = StudyStore.create(tmp_path / "s", {}, buffer_seconds=1000)
    store.put_trial(trial(0))
    store.add_epoch(epoch(0, 1))
    assert StudyStore.open(store.folder).trials() == []
    assert store.epochs() == [epoch(0, 1)], "the writer sees its own rows"
    store.flush()
    assert StudyStore.open(store.folder).trials() == [trial(0)]
    assert StudyStore.open(store.folder).epochs() == [epoch(0, 1)]


def test_the_tables_are_plain_parquet_with_a_mark(store):
    store.put_trial(trial(0))
    store.add_epoch(epoch(0, 1))
    trials = pq.read_table(store.folder / "trials.parquet")
    epochs = pq.read_table(store.folder / "epochs")
    assert trials.schema.metadata[b"format_version"] == b"4"
    assert json.loads(trials["params"][0].as_py()) == {"optim.lr": 0.1}
    assert epochs.schema.field("metrics").type == pa.map_(pa.string(), pa.float64())
    metadata = pq.read_metadata(store.folder / "trials.parquet")
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_wall_clock_time_is_written_with_the_trials(store):
    clock = iter([5.0, 7.0])
    store.count_time(lambda: next(clock))
    store.put_trial(trial(0))
    assert StudyStore.open(store.folder).wall_seconds == 5.0
    store.put_trial(trial(1))
    again = StudyStore.open(store.folder)
    assert again.wall_seconds == 7.0
    again.put_trial(trial(2))
    assert StudyStore.open(store.folder).wall_seconds == 7.0, "who does not count leaves it"


@pytest.mark.parametrize(
    ("version", "unknown"), [(1, {"seconds_per_epoch", "gpu_seconds"}), (2, {"gpu_seconds"}), (3, set())]
)
def test_a_study_of_an_older_format_opens_and_is_written_in_the_new_one(store, version, unknown):
    known = {"seconds_per_epoch": 2.0, "gpu_seconds": 1.0}
    store.put_trial(trial(0, **known))
    store.add_epoch(epoch(0, 1))
    for path in (store.folder / "trials.parquet", *(store.folder / "epochs").iterdir()):
        table = pq.read_table(path.open("rb"))
        columns = [name for name in table.schema.names if name not in unknown]
        old = {b"format": b"cellseg-study", b"format_version": str(version).encode()}
        pq.write_table(table.select(columns).replace_schema_metadata(old), path)
    study = json.loads((store.folder / "study.json").read_text()) | {"format_version": version}
    (store.folder / "study.json").write_text(json.dumps(study))
    again = StudyStore.open(store.folder)
    former = trial(0, **known | dict.fromkeys(unknown))
    assert again.trials() == [former]
    assert again.epochs() == [epoch(0, 1)]
    assert again.wall_seconds == 0.0
    again.put_trial(trial(1, **known))
    again.add_epoch(epoch(1, 1))
    assert StudyStore.open(store.folder).trials() == [former, trial(1, **known)]
    assert pq.read_table(store.folder / "trials.parquet").schema.metadata[b"format_version"] == b"4"


def test_the_best_trials_are_those_of_the_objective_where_there_is_one(tmp_path):
    store = StudyStore.create(tmp_path / "s", {"metric": "m", "objective": {"per": "seconds", "doubling": 1.0}})
    for number, (metric, seconds) in enumerate([(0.5, 2.0), (0.9, 9.0), (0.4, 1.0), (0.9, None)]):
        store.put_trial(trial(number, metric=metric, seconds_per_epoch=seconds))
    for again in (store, StudyStore.open(store.folder)):
        assert [row.number for row in again.best_trials()] == [2, 0, 1]


def test_checkpoints_of_a_trial_have_a_folder_of_their_own(store):
    assert store.checkpoint_folder(7) == store.folder / "checkpoints" / "t0007"
    assert not store.checkpoint_folder(7).exists()


def test_no_scratch_files_stay_behind(store):
    for number in range(5):
        store.put_trial(trial(number))
        store.add_epoch(epoch(number, 1))
    names = sorted(path.name for path in store.folder.rglob("*"))
    tables = ["epochs", "part-00000.parquet", "trials.parquet"]
    assert names == sorted(["backup", "best.yaml", *tables, *tables, "study.json"])


def _break(path, content: bytes | None) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("study.json", None, r"must hold a study, but got no study.json"),
        ("study.json", b"{", r"study.json: must be valid JSON"),
        ("study.json", b"[]", r"study.json: must be written by search.run, but got a file without its mark"),
        ("study.json", b'{"format": "other", "format_version": 1}', r"study.json: must be written by search.run"),
        ("study.json", b'{"format": "cellseg-study", "format_version": 5}', r"of format 4 or older, but got 5. Update"),
        ("trials.parquet", b"", r"trials.parquet: must be a readable Parquet file"),
        ("trials.parquet", b"PAR1 and then nothing PAR1", r"trials.parquet: must be a readable Parquet file"),
        ("epochs/part-00000.parquet", b"rubbish", r"part-00000.parquet: must be a readable Parquet file"),
    ],
)
def test_a_missing_foreign_or_damaged_file_is_named(store, name, content, match):
    _break(store.folder / name, content)
    with pytest.raises(UserError, match=match):
        StudyStore.open(store.folder)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        (None, r"trials.parquet: must be written by search.run"),
        (
            {"format": "cellseg-study", "format_version": "5"},
            r"trials.parquet: must be of format 4 or older, but got 5",
        ),
        ({"format": "cellseg-study", "format_version": "1"}, r"trials.parquet: must have the columns of format 4"),
    ],
)
def test_a_parquet_file_of_another_kind_is_refused(store, metadata, match):
    table = pa.table({"a": [1]}).replace_schema_metadata(metadata)
    pq.write_table(table, store.folder / "trials.parquet")
    with pytest.raises(UserError, match=match):
        StudyStore.open(store.folder)


def test_a_second_study_is_not_made_over_the_first(store):
    assert StudyStore.exists(store.folder)
    with pytest.raises(UserError, match="must not hold a study yet"):
        StudyStore.create(store.folder, {})


def test_the_latest_study_is_the_one_that_was_worked_on_last(tmp_path):
    first = StudyStore.create(tmp_path / "first", {})
    StudyStore.create(tmp_path / "second", {})
    (tmp_path / "no study").mkdir()
    assert latest_study(tmp_path).name == "second"
    first.put_trial(trial(0, started="2999-01-01T00:00:00+00:00"))
    assert latest_study(tmp_path).name == "first"
    assert [study.name for study in list_studies(tmp_path)] == ["first", "second"]


def test_a_study_that_never_began_does_not_hide_one_with_trials(tmp_path):
    StudyStore.create(tmp_path / "worked", {}).put_trial(trial(0, started="2020-01-01T00:00:00+00:00"))
    StudyStore.create(tmp_path / "could not start", {})
    assert latest_study(tmp_path).name == "worked"


def test_without_studies_the_latest_is_an_error(tmp_path):
    assert list_studies(tmp_path / "nothing") == []
    with pytest.raises(UserError, match=r"must hold a study, but got none\. Run python -m"):
        latest_study(tmp_path)


def _read_until_told(folder, stop, failures) -> None:
    while not stop.is_set():
        try:
            seen = StudyStore.open(folder)
            assert len(seen.epochs()) >= 0
        except Exception as error:
            failures.put(repr(error))
            return


def test_another_process_can_read_while_rows_are_written(store, small_parts):
    context = multiprocessing.get_context("fork")
    stop, failures = context.Event(), context.Queue()
    reader = context.Process(target=_read_until_told, args=(store.folder, stop, failures))
    reader.start()
    for number in range(1, 60):
        store.add_epoch(epoch(0, number))
        store.put_trial(trial(number))
    stop.set()
    reader.join(10)
    assert reader.exitcode == 0
    assert failures.empty()


def test_in_a_buffered_block_rows_wait_for_a_flush_and_are_written_at_its_end(tmp_path):
    store = StudyStore.create(tmp_path / "s", {})

    def on_disk() -> list[int]:
        return [row.number for row in StudyStore.open(tmp_path / "s").trials()]

    with pytest.raises(RuntimeError, match="stopped"), store.buffered(1000):
        store.put_trial(trial(0))
        assert on_disk() == []
        store.flush()
        assert on_disk() == [0]
        store.put_trial(trial(1))
        raise RuntimeError("stopped")
    assert on_disk() == [0, 1]
    store.put_trial(trial(2))
    assert on_disk() == [0, 1, 2], "the buffer was for the block"


def test_epochs_are_on_disk_before_the_trial_that_tells_of_them(tmp_path, monkeypatch):
    """Whatever moment a search is killed at, a trial never claims epochs that the tables lack."""
    store = StudyStore.create(tmp_path / "s", {}, buffer_seconds=1000)
    store.put_trial(trial(0, epochs=1))
    store.add_epoch(epoch(0, 1))
    written, write = [], store_module.write_table

    def watch(path, table, backup):
        written.append(path.name)
        write(path, table, backup)

    monkeypatch.setattr(store_module, "write_table", watch)
    store.flush()
    assert written == ["part-00000.parquet", "trials.parquet"]


@pytest.mark.parametrize("rows_before", [4, 8])
def test_a_part_that_was_full_when_the_study_was_opened_is_not_written_again(store, small_parts, rows_before):
    for number in range(1, rows_before + 1):
        store.add_epoch(epoch(0, number))
    full = sorted((store.folder / "epochs").iterdir())
    before = [path.stat().st_ino for path in full]
    again = StudyStore.open(store.folder)
    again.add_epoch(epoch(1, 1))
    assert [path.stat().st_ino for path in full] == before
    names = [path.name for path in sorted((store.folder / "epochs").iterdir())]
    assert names == [*(path.name for path in full), f"part-{len(full):05d}.parquet"]
    assert len(StudyStore.open(store.folder).epochs()) == rows_before + 1


def test_reading_starts_no_threads_that_could_outlive_the_interpreter(store):
    store.put_trial(trial(0))
    store.add_epoch(epoch(0, 1))
    code = (
        "import os, sys; from search.storage.store import StudyStore; threads = len(os.listdir('/proc/self/task'));"
        "store = StudyStore.open(sys.argv[1]); store.trials(); store.epochs(0); store.epochs_by_trial();"
        "print(len(os.listdir('/proc/self/task')) - threads)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.folder], capture_output=True, text=True, timeout=100)
    assert done.stdout == "0\n", done.stderr


def test_only_ended_trials_compete_for_what_is_kept(store):
    for number, (metric, state) in enumerate(
        [(0.2, "COMPLETE"), (0.9, "RUNNING"), (0.7, "PRUNED"), (None, "FAILED"), (0.7, "COMPLETE")]
    ):
        store.put_trial(trial(number, metric=metric, state=state))
    assert (store.best_ended(2), store.best_ended(9)) == ([2, 4], [2, 4, 0])
    store.put_trial(trial(1, metric=0.8))
    store.put_trial(trial(2, metric=0.1, state="PRUNED"))
    assert store.best_ended(9) == StudyStore.open(store.folder).best_ended(9) == [1, 4, 0, 2]


def test_what_changed_is_told_by_revision(store):
    for number in range(4):
        store.put_trial(trial(number))
    revision = store.revision
    assert store.changed_since(revision) == []
    store.put_trial(trial(2, seconds=1.0))
    store.put_trial(trial(0, seconds=1.0))
    store.put_trial(trial(2, seconds=2.0))
    assert store.changed_since(revision) == [trial(0, seconds=1.0), trial(2, seconds=2.0)]
    again = StudyStore.open(store.folder)
    assert again.changed_since(0) == again.trials() == store.changed_since(0)
