"""Marks of processes, and what is known of their owners."""

import os
import platform
import subprocess
import sys

import pytest

from cellseg.owners import is_gone, owner_mark


def test_this_process_is_there_and_one_that_ended_is_not():
    assert owner_mark().startswith(f"{os.getpid()}-")
    assert not is_gone(owner_mark())
    done = subprocess.run(
        [sys.executable, "-c", "import cellseg.owners; print(cellseg.owners.owner_mark())"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert is_gone(done.stdout.strip())


@pytest.mark.parametrize("mark", ["999999999-elsewhere", f"1-{platform.node()}", "", "rubbish", f"x-{platform.node()}"])
def test_what_is_not_known_to_be_gone_may_be_there(mark):
    assert not is_gone(mark)
