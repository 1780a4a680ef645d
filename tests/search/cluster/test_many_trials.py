"""Three hundred real trainings in one search, and what is left when it is over."""

import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from spacefiles import TINY_SPACE

from search.storage.store import StudyStore

TRIALS = 300
SHARED_MEMORY = Path("/dev/shm")


def processes_with(marker: str) -> dict[int, str]:
    """Command lines, by process, of all whose environment holds the marker, which every child inherits."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
    return {pid: command for pid, command in found.items() if command}  # a zombie has none


def unused(names: set[str]) -> set[str]:
    """Those files in shared memory that no process has mapped: nobody will remove them any more."""
    mapped = set()
    for file in Path("/proc").glob("[0-9]*/maps"):
        try:
            mapped |= {name for name in names if f"{SHARED_MEMORY}/{name}" in file.read_text()}
        except OSError:
            continue
    return {name for name in names - mapped if (SHARED_MEMORY / name).exists()}


def in_shared_memory() -> set[str]:
    return {path.name for path in SHARED_MEMORY.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads Linux's list of processes")
def test_a_long_search_leaves_nothing_behind(workplace, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    space = TINY_SPACE.replace("trials: 3", f"trials: {TRIALS}").replace("train: 10, test: 3", "train: 6, test: 1")
    (workplace.folder / "many.yaml").write_text(space)
    before = in_shared_memory()
    # Ray's own folder has a short name, for its sockets; it is Ray's to keep, as its logs are.
    environment = os.environ | {"TMPDIR": str(scratch), "RAY_TMPDIR": "/tmp/ray"}
    command = workplace.command("search.run", "many.yaml")
    done = subprocess.run(command, cwd=workplace.folder, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    deadline = time.monotonic() + 20
    while (alive := processes_with(f"TMPDIR={scratch}")) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not alive, "orphans"
    # The server from which Ray's dashboard forks is killed with its socket in place; torch's cache has a fixed name.
    assert len([*scratch.glob("pymp-*")]) <= 1
    left_over = {path.name for path in scratch.iterdir() if not path.name.startswith(("pymp-", "torchinductor_"))}
    assert not left_over, "temporary files"
    assert not unused(in_shared_memory() - before), "shared memory"

    study = workplace.folder / "results" / "many"
    rows = StudyStore.open(study).trials()
    states = Counter(row.state for row in rows)
    assert set(states) <= {"COMPLETE", "PRUNED", "INFEASIBLE", "FAILED"}, "a trial that ran is one that ended"
    assert sum(count for state, count in states.items() if state != "FAILED") == TRIALS
    assert not [row.reason for row in rows if row.reason.startswith(("lost", "bug", "invalid"))]
    assert sum(row.epochs for row in rows) == len(StudyStore.open(study).epochs())

    (best,) = StudyStore.open(study).best_trials(1)
    assert [path.name for path in (study / "checkpoints").iterdir()] == [f"t{best.number:04d}"]
    assert [path.name for path in (study / "checkpoints" / f"t{best.number:04d}").iterdir()] == ["best"]
    assert {path.name for path in study.iterdir()} == {
        ".lock",
        "checkpoints",
        "epochs",
        "overlays",
        "best.yaml",
        "study.json",
        "trials.parquet",
    }
    assert all(path.name.startswith("part-") for path in (study / "epochs").iterdir())
