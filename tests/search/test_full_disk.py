"""A real search on a disk that is full for a while."""

import pytest
from small_disk import run_on_small_disk

SCENARIO = """
import contextlib, os, subprocess, sys, time
from pathlib import Path
from search.storage.store import StudyStore

disk, space = Path(sys.argv[1]), sys.argv[2]
search = [
    sys.executable, "-c",
    "import sys, search.study.storage_watch as watch; from search.run import main; watch.RESERVED_BYTES = 0; "
    "sys.exit(main(sys.argv[1:]))",
    space, "--study", "s", "--results", str(disk), "--trials", "3", "--epochs", "8", "--set", "asha=false",
]

def started():
    return subprocess.Popen(search, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def rows():
    return StudyStore.open(disk / "s").trials() if (disk / "s" / "trials.parquet").exists() else []

SLOW = "in ray_cluster"  # in the traceback: Ray gives itself 30 s to start, which a busy machine may exceed
driver = started()
while not any(row.epochs for row in rows()):
    if driver.poll() is not None:
        out, err = driver.communicate()
        assert SLOW in err, out + err
        driver = started()
    time.sleep(0.1)
with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
    while True:
        filler.write(bytes(4096))
out, err = driver.communicate(timeout=300)
print("STOPPED", driver.returncode, err)
print("STATES", sorted({row.state for row in rows()}))
(disk / "filler").unlink()
err = SLOW
while SLOW in err:
    again = started()
    out, err = again.communicate(timeout=600)
print("CONTINUED", again.returncode, err)
print("ENDS", [(row.number, row.state, row.epochs) for row in rows()])
store = StudyStore.open(disk / "s")
print("EPOCHS", [(row.trial, row.epoch) for row in store.epochs()] == [(t, e) for t in range(3) for e in range(1, 9)])
print("SECONDS", all(row.seconds > 0 for row in store.epochs()))
"""


@pytest.mark.slow  # two searches with a real, tiny model
@pytest.mark.timeout(1200)
def test_a_disk_that_is_full_for_a_while_costs_no_trial(workplace):
    done = run_on_small_disk(SCENARIO, workplace.folder / "disk", "500m", "tiny cells.yaml", cwd=workplace.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.split(" ", 1)[0].isupper())
    assert told["STOPPED"].startswith("2 error: "), done.stdout
    assert "must be writable, but got 'No space left on device'. Free some space, then run the same" in done.stdout
    assert "FAILED" not in told["STATES"]
    assert told["CONTINUED"].strip() == "0", done.stdout
    assert told["ENDS"] == "[(0, 'COMPLETE', 8), (1, 'COMPLETE', 8), (2, 'COMPLETE', 8)]"
    assert told["EPOCHS"] == "True"
