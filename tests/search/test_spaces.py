"""The spaces in spaces/ are sound."""

import re
import sys
from pathlib import Path

import pytest

from search.run import main

SPACES = sorted((Path(__file__).parents[2] / "spaces").glob("**/*.yaml"))


def test_there_are_spaces():
    assert SPACES


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_dry_run_prints_the_plan_and_starts_nothing(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "search.cluster.driver", None)  # importing it fails
    assert main([str(path), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert re.match(rf"study {re.escape(path.stem)}\n(maximize segm/AP|minimize loss/validation)", out)
    assert "ASHA" in out
    assert re.search(r"^models: \d+ built, ", out, re.MULTILINE)
    assert "never drawn" not in out
    assert err == ""
    assert not list(tmp_path.iterdir())
