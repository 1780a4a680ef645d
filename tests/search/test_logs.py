"""What a trial's process printed: the file, and the command that shows it."""

import os
import subprocess
import sys

import pytest
from fakes import make_report, make_study

from search.cluster.trial_log import TrialLog
from search.commands.logs import main
from search.storage.trial_logs import Attempt, header, last_attempt, last_traceback, log_beside, log_path, read_lines

TRACEBACK = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', "    g()", "KeyError: 'x'"]


@pytest.fixture
def study(tmp_path):
    """One trial failed with a traceback, one runs, one has not begun."""
    study = make_study(tmp_path, "cells")
    for _ in range(3):
        study.propose()
    study.report(0, make_report(1, 0.5), "gpu-3")
    study.end(0, "bug", "\n".join(TRACEBACK))
    return study


def write_log(study, number: int, lines: list[str]) -> None:
    path = log_path(study.store.folder, number)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def show(study, capsys, *arguments: str) -> list[str]:
    assert main(["--results", str(study.store.folder.parent), *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_log_of_a_trial_lies_beside_the_checkpoints(study):
    folder = study.store.folder
    assert log_path(folder, 7) == log_beside(study.store.checkpoint_folder(7)) == folder / "logs" / "t0007.log"
    assert read_lines(log_path(folder, 7)) == []


def test_a_header_tells_the_process_again():
    attempt = Attempt(started="2026-01-02T03:04:05+00:00", node="node, of 3 GPUs", pid=4711)
    lines = [header(7, "my cells", Attempt("then", "other", 1)), "x", header(7, "my cells", attempt), "y"]
    assert last_attempt(lines) == attempt
    assert last_attempt(["x"]) is None


def test_the_last_traceback_ends_with_its_exception():
    assert last_traceback(["a", *TRACEBACK, "b"]) == TRACEBACK
    assert last_traceback([*TRACEBACK, "a", TRACEBACK[0], "  cut"]) == [TRACEBACK[0], "  cut"]
    assert last_traceback(["a"]) == []


def test_the_command_shows_where_a_trial_ran_and_the_end_of_its_log(study, capsys):
    write_log(study, 0, [header(0, "cells", Attempt("then", "gpu-3", 4711)), "one", *TRACEBACK, "ended as bug"])
    lines = show(study, capsys, "--trial", "0", "--lines", "2")
    path = log_path(study.store.folder, 0)
    assert lines[:7] == [
        "trial t0000 of study cells: failed in epoch 1",
        "reason: bug: KeyError: 'x'",
        "try: read the log; report what is a bug of cellseg-search",
        "node gpu-3, process 4711, started then",
        f"log: {path}, the last 2 of 7 lines",
        "  KeyError: 'x'",
        "  ended as bug",
    ]
    assert lines[7:] == ["its last traceback:", *(f"  {line}" for line in TRACEBACK)]
    assert "its last traceback:" not in show(study, capsys, "--trial", "0"), "it is shown already"


def test_without_a_log_the_tables_tell_what_they_know(study, capsys):
    lines = show(study, capsys, "--trial", "0")
    assert lines[3] == "node gpu-3"
    assert lines[4].startswith(f"log: nothing at {log_path(study.store.folder, 0)}; ")
    assert lines[5:] == ["its traceback:", *(f"  {line}" for line in TRACEBACK)]
    assert show(study, capsys, "--trial", "2")[0] == "trial t0002 of study cells: running in epoch 0"


def test_a_trial_that_is_not_there_is_refused(study, capsys):
    assert main(["--results", str(study.store.folder.parent), "--trial", "9"]) == 2
    assert "--trial: must be a trial of study 'cells', but got 9; it has 3." in capsys.readouterr().err


def test_a_process_that_is_no_worker_keeps_its_output(study, capfd):
    log = TrialLog()
    log.begin("cells", 1, study.store.checkpoint_folder(1))
    log.note("nowhere")
    log.trim()
    os.write(1, b"here\n")
    assert capfd.readouterr().out == "here\n"
    assert not (study.store.folder / "logs").exists()


def test_a_log_keeps_its_size_and_its_newest_lines(tmp_path):
    """In a process of its own, which a worker of Ray's is told apart from by its actor alone."""
    script = f"""
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
import search.cluster.trial_log as module
module.ray = SimpleNamespace(
    is_initialized=lambda: True, get_runtime_context=lambda: SimpleNamespace(get_actor_id=lambda: "a")
)
module.MAX_BYTES = 10_000
log = module.TrialLog()
log.begin("cells", 3, Path({str(tmp_path)!r}) / "checkpoints" / "t0003")
for number in range(2000):
    os.write(1, b"line %04d\\n" % number)
log.trim()
log.note("after")
log.begin("cells", 4, Path({str(tmp_path)!r}) / "checkpoints" / "t0004")
os.write(2, b"of the next\\n")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"the output goes on in {tmp_path / 'logs' / 't0003.log'}\n"
    lines = read_lines(log_path(tmp_path, 3))
    assert last_attempt(lines) is not None
    assert lines[1] == "[... cut ...]"
    assert lines[-2:] == ["line 1999", "after"]
    assert 4000 < log_path(tmp_path, 3).stat().st_size < 6000
    assert read_lines(log_path(tmp_path, 4))[1:] == ["of the next"]
