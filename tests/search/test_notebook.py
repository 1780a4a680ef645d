"""The notebook of the documentation runs from top to bottom, cell by cell, as Jupyter would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_search.ipynb"

RUN = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
print("TRIALS", len(names["study"].trials), "EPOCHS", len(names["study"].epochs))
"""


def test_the_notebook_is_committed_without_results():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 5 and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    for cell in code:
        compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_leads_from_images_to_a_picture(tmp_path):
    environment = {**os.environ, "CELLSEG_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(NOTEBOOK.parents[1]), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", RUN, str(NOTEBOOK)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=890)
    assert done.returncode == 0, done.stderr
    assert "TRIALS 2 EPOCHS " in done.stdout
    assert (tmp_path / "cells.png").stat().st_size > 0
    assert (tmp_path / "results" / "first" / "best.yaml").is_file()
