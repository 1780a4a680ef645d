"""Former generations of a study's files: ``results/<study>/backup/`` holds each file as it was before its last write.

A file that cannot be read is not replaced in silence: a kill or a full disk damages none, so a disk or another program
did, and what else it did is for a person to judge. The error names the one command that brings the former state back.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

BACKUP = "backup"


def backup_of(path: Path, study: Path) -> Path:
    """Return where the former generation of a file of the study's folder is, if there is one."""
    return study / BACKUP / path.relative_to(study)


def how_to_restore(path: Path, backup: Path | None, read: Callable[[Path], Any]) -> str:
    """Say how to replace a damaged file, in a sentence.

    Args:
        read: raises an exception for a file that is damaged too.
    """
    try:
        assert backup is not None
        read(backup)
    except Exception:
        return "Restore it from a copy."
    command = shlex.join(["cp", str(backup), str(path)])
    return f"Restore its state before the last write: {command}"
