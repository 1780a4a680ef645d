"""Signals, damaged files, file systems without locks and clocks that jump."""

import re
import shutil
import signal
import subprocess
import time

import pytest

from cellseg.cli import EXIT_INTERRUPTED, EXIT_USER_ERROR
from search.storage.tables import UNFINISHED
from tests.faults.harness import Bench, require_clean, require_whole, tables, wait_until

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
