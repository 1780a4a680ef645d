"""How a search is doing, told from its tables."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import make_space
from made_study import make_tables, write_progress

from search.commands.status import main
from search.storage.store import StudyStore


@pytest.fixture
def running(tmp_path):
    store = make_tables(tmp_path / "cells", make_space(trials=20), 9, running=2)
    write_progress(store, 8, phase="training", epoch=store.trial(8).epochs + 1, done=1, total=2, images_per_second=7.5)
    return store


def test_it_shows_what_the_board_shows(running, tmp_path, capsys):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"cells: {sum(row.state != 'FAILED' for row in running.trials()) - 2} of 20 trials (2 running"
    )
    assert "best segm/AP50" in out
    assert "t0007" in out and "t0008" in out and "7.5" in out
    assert out.rstrip().endswith(f"study cells in {running.folder}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_it_says_that_a_search_seems_to_be_dead(running, tmp_path, capsys):
    for file in (running.folder / "trials.parquet", running.folder / "progress" / "t0008.json"):
        os.utime(file, (time.time() - 600, time.time() - 600))
    main(["--results", str(tmp_path)])
    assert "no sign of life for 10:0" in capsys.readouterr().out


def test_a_study_that_is_over_is_not_called_dead(tmp_path, capsys):
    store = make_tables(tmp_path / "cells", make_space(), 4)
    os.utime(store.folder / "trials.parquet", (0, 0))
    assert main(["--results", str(tmp_path), "--watch"]) == 0
    out = capsys.readouterr().out
    assert "sign of life" not in out and "running" not in out


def test_watching_ends_with_the_search(running, tmp_path, monkeypatch, capsys):
    def pass_time(seconds):
        store = StudyStore.open(running.folder)
        for row in store.trials():
            store.put_trial(replace(row, state="COMPLETE", reason="epochs") if row.state == "RUNNING" else row)
        store.flush()

    monkeypatch.setattr("search.commands.status.time.sleep", pass_time)
    assert main(["--results", str(tmp_path), "--watch"]) == 0
    out = capsys.readouterr().out
    assert "2 running" in out.splitlines()[0]
    assert "running" not in out.rpartition("cells: ")[2]


def test_it_loads_neither_torch_nor_ray(running, tmp_path):
    script = (
        "import sys; from search.commands.status import main; assert main(sys.argv[1:]) == 0;"
        "assert not {'torch', 'ray', 'optuna', 'cv2'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr


def test_without_a_study_there_is_a_line(tmp_path, capsys):
    assert main(["--results", str(tmp_path / "none")]) == 2
    assert "must hold a study" in capsys.readouterr().err
