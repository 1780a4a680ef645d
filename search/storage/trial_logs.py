"""The log of a trial, ``results/<study>/logs/t0007.log``: what its processes printed, each under its own header."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 1 << 20
"""Size that a log may have at the beginning of an epoch; of a longer one, the last half of that is kept."""

_HEADER = re.compile(r"=== t\d+ of .*: started (\S+) on (.*), process (\d+) ===")
_TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A process that ran a trial, as its header in the log tells."""

    started: str
    """Time in UTC, ISO 8601."""
    node: str
    """Name of the machine."""
    pid: int


def log_path(study: Path, number: int) -> Path:
    """Return where the log of a trial is, if it has one; ``study`` is the study's folder."""
    return study / "logs" / f"t{number:04d}.log"


def log_beside(checkpoints: Path) -> Path:
    """Return where the log of the trial is whose checkpoints are in that folder."""
    return checkpoints.parent.parent / "logs" / f"{checkpoints.name}.log"


def header(number: int, study: str, attempt: Attempt) -> str:
    """Write the line under which the output of a process begins."""
    return f"=== t{number:04d} of {study}: started {attempt.started} on {attempt.node}, process {attempt.pid} ==="


def read_lines(path: Path) -> list[str]:
    """Return the lines of a log; none if there is no log."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def last_attempt(lines: Sequence[str]) -> Attempt | None:
    """Return the last process that the lines of a log tell of."""
    for line in reversed(lines):
        if match := _HEADER.fullmatch(line):
            return Attempt(started=match[1], node=match[2], pid=int(match[3]))
    return None


def last_traceback(lines: Sequence[str]) -> list[str]:
    """Return the lines of the last traceback; empty if there is none."""
    starts = [index for index, line in enumerate(lines) if line.strip() == _TRACEBACK]
    if not starts:
        return []
    start = starts[-1]
    # The first line that is not indented names the exception.
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines) - 1)
    return list(lines[start : end + 1])
