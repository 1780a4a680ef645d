"""A small file system of their own for tests that fill it. It needs Linux's user namespaces and no rights."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'


@functools.cache
def _is_possible() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "bash", "-c", _MOUNT, "1m", "/mnt", "true"]
    return subprocess.run(probe, capture_output=True, timeout=60).returncode == 0


def run_on_small_disk(
    code: str, folder: Path, size: str, *arguments: str, cwd: Path | None = None, timeout: float = 1000
) -> subprocess.CompletedProcess:
    """Run Python code for which ``folder``, its first argument, is an empty file system of this size.

    Args:
        size: of tmpfs, such as ``8m``.
    """
    if not _is_possible():
        pytest.skip("this system lets nobody mount a file system in a namespace of their own")
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", code, str(folder), *arguments]
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", _MOUNT, size, str(folder), *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
    )
