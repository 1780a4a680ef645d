"""Signals, damaged files, file systems without locks and clocks that jump."""

import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from small_disk import run_on_small_disk
from spacefiles import TINY_SPACE

from cellseg.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR
from search.storage.tables import UNFINISHED
from tests.faults.harness import Bench, require_clean, require_whole, tables, wait_until
from tests.faults.machines import PYTHONPATH

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGINT, signal.SIGINT], id="Ctrl-C twice"),
        pytest.param([signal.SIGINT], id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param([signal.SIGTERM], id="SIGTERM", marks=pytest.mark.slow),
        pytest.param([signal.SIGTERM, signal.SIGTERM], id="SIGTERM twice", marks=pytest.mark.slow),
        pytest.param([signal.SIGHUP], id="hang-up", marks=pytest.mark.slow),
    ],
)
def test_a_driver_that_is_told_to_stop_keeps_everything(make_bench, expected, signals):
    bench = make_bench()
    driver = bench.start()
    bench.wait_for_epochs(8, driver)
    began = time.monotonic()
    for number in signals:
        driver.send(number)
        wait_until(lambda: "topping" in driver.output or driver.status is not None, "it says that it stops")
    assert driver.wait() == EXIT_INTERRUPTED, driver.output
    assert time.monotonic() - began < 30
    assert "Traceback" not in driver.output
    assert "INTERRUPTED" in {row.state for row in bench.rows()}
    assert "RUNNING" not in {row.state for row in bench.rows()}
    bench.finish()
    require_whole(bench)
    assert tables(bench.store()) == expected
    assert bench.num_repeated() <= 1
    require_clean(bench)


def test_a_table_that_was_cut_stops_the_study_and_its_backup_continues_it(make_bench, undisturbed, expected):
    bench: Bench = make_bench()
    shutil.copytree(undisturbed.results, bench.results)
    tables_written = [path for path in bench.place.rglob("*.parquet") if "backup" not in path.parts]
    newest = max(tables_written, key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-100])
    stopped = bench.start()
    assert stopped.wait() == EXIT_USER_ERROR
    told = re.search(r"Restore its state before the last write: (cp .*)\n", stopped.output)
    assert told is not None, stopped.output
    subprocess.run(told[1], shell=True, check=True, cwd=bench.folder)
    assert {row.state for row in bench.rows()} & UNFINISHED, "what was lost is trained again"
    bench.finish()
    require_whole(bench)
    assert tables(bench.store()) == expected
    require_clean(bench)


@pytest.mark.slow  # a lease is watched for seconds
def test_without_locks_one_driver_writes_and_a_killed_one_is_followed_at_once(make_bench, expected):
    bench: Bench = make_bench(faults=("no locks",))
    first = bench.start()
    bench.wait_for_epochs(3, first)
    second = bench.start()
    assert second.wait() == EXIT_USER_ERROR
    assert f"one command at a time may work on it, but process {first.pid} on " in second.output
    first.send(signal.SIGKILL)
    first.wait()
    began = time.monotonic()
    third = bench.start()
    wait_until(lambda: "maximize segm/AP50" in third.output or third.status is not None, "it took over")
    assert "Watching for up to" not in third.output, f"a dead process of this machine: {time.monotonic() - began:.0f} s"
    assert third.wait() == 0, third.output
    require_whole(bench)
    assert tables(bench.store()) == expected
    require_clean(bench)


@pytest.mark.slow  # its unit tests are quick: tests/search/study/test_limits.py
def test_a_wall_clock_that_jumps_changes_no_decision(make_bench, expected):
    bench = make_bench(faults=("jumping clock",), settings=("--set", "limits.hours=1"))
    bench.finish()
    require_whole(bench)
    assert tables(bench.store()) == expected
    assert bench.store().wall_seconds < 600
    require_clean(bench)


def cut_weights(folder: Path) -> None:
    weights = next(folder.glob("weights-*.pt"))
    content = weights.read_bytes()
    weights.unlink()  # it may share its blocks with that of ``best``
    weights.write_bytes(content[: len(content) // 2])


def cut_training(folder: Path) -> None:
    training = next(folder.glob("training-*.pt"))
    training.write_bytes(training.read_bytes()[:1000])


def garble_description(folder: Path) -> None:
    (folder / "checkpoint.json").write_bytes(b"\x00\xffgarbage{")


@pytest.mark.slow  # trials train
@pytest.mark.parametrize("damage", [cut_weights, cut_training, garble_description])
def test_a_damaged_checkpoint_costs_its_trial_and_no_other(make_bench, damage):
    bench: Bench = make_bench(
        space=TINY_SPACE, faults=("trains",), settings=("--epochs", "6", "--set", "asha=false"), study="trains"
    )
    driver = bench.start()

    def half_way() -> list:
        assert driver.status is None, driver.output
        return [row for row in bench.rows() if row.number == 1 and 1 <= row.epochs < 5]

    wait_until(half_way, "the second trial trains")
    driver.send(signal.SIGINT)
    assert driver.wait() == EXIT_INTERRUPTED, driver.output
    finished, broken = bench.rows()[:2]
    assert broken.state == "INTERRUPTED"
    last = bench.store().checkpoint_folder(1) / "last"
    damage(last)
    bench.finish()
    rows = bench.rows()
    assert rows[0] == finished
    assert [row.state for row in rows] == ["COMPLETE", "FAILED", "COMPLETE", "COMPLETE"], "another takes its place"
    assert rows[1].ending == "invalid"
    assert f"{last}/" in rows[1].reason
    require_clean(bench)


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from fakes import finish, lifelike_ending, lifelike_report, make_study
from cellseg.errors import UserError

disk = Path(sys.argv[1])
SETTINGS = {"trials": 11, "epochs": 6, "asha": {"grace": 1, "reduction": 3}}

def mount(how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

def run(study, most):
    '''Train so many epochs at most; those that a trial has are not trained again.'''
    while most > 0 and (proposal := study.propose()) is not None:
        number, epoch = proposal.number, proposal.epochs
        while most > 0:
            epoch, most = epoch + 1, most - 1
            if not study.report(number, lifelike_report(number, epoch, 6)):
                if (ending := lifelike_ending(number, epoch, 6)) is not None:
                    finish(study, number, ending)
                break

study = make_study(disk, **SETTINGS)
run(study, 13)
mount("ro")
try:
    run(study, 5)
    print("written")
except UserError as error:
    print("error:", error)
mount("rw")
study = make_study(disk, **SETTINGS)
run(study, 1000)
print("over:", study.is_over)
for row in study.rows:
    print("row:", row.number, row.state, row.reason, row.epochs, row.metric)
"""


@pytest.mark.slow  # two processes that import everything
def test_storage_that_turns_read_only_stops_a_study_and_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    first = run_on_small_disk(READ_ONLY, tmp_path / "disk", "1g")
    assert first.returncode == 0, first.stdout + first.stderr
    lines = first.stdout.splitlines()
    (error,) = (line for line in lines if line.startswith("error: "))
    assert "must be writable, but got 'Read-only file system'" in error
    assert "Mount it for writing, then run the same command again." in error
    assert "over: True" in lines
    undisturbed = run_on_small_disk(READ_ONLY.replace('mount("ro")', ""), tmp_path / "other", "1g")
    assert "written" in undisturbed.stdout, undisturbed.stdout + undisturbed.stderr
    rows = [line for line in lines if line.startswith("row: ")]
    assert len(rows) == 11
    assert rows == [line for line in undisturbed.stdout.splitlines() if line.startswith("row: ")]
