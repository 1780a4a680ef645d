"""Commands answer --help at once: what is heavy is imported when it is needed."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "ray", "optuna", "pyarrow", "albumentations", "cv2"}

SCRIPT = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
print("loaded:", *sys.modules)
"""


COMMANDS = (
    "cellseg.data.check",
    "cellseg.data.import_labels",
    "search.run",
    "search.commands.submit",
    "search.commands.jobs",
    "search.commands.stop",
    "search.commands.weights",
    "search.commands.doctor",
    "search.commands.export_model",
    "search.commands.predict",
    "search.export",
    "search.report",
    "search.commands.logs",
    "search.commands.status",
    "search.commands.dashboard",
    "search.commands.completion",
    "search.optuna_export",
    "cellseg.config",
    "cellseg.train",
    "cellseg.predict",
)


@pytest.mark.parametrize("module", COMMANDS)
def test_help_loads_nothing_heavy(module):
    done = subprocess.run([sys.executable, "-c", SCRIPT, module], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    help_text, loaded = done.stdout.split("loaded:")
    assert help_text.startswith(f"usage: python -m {module}")
    assert not HEAVY & set(loaded.split())
