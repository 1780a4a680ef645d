"""Each test asks a fresh interpreter, because this one has loaded everything already."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
import cellseg
names = [m.name for m in pkgutil.walk_packages(cellseg.__path__, "cellseg.")]
for name in names:
    importlib.import_module(name)
print(len(names), sorted({"ray", "optuna", "search"} & set(sys.modules)))
"""

HELP = """
import runpy, sys
command = sys.argv[1]
sys.argv = [command, "--help"]
try:
    runpy.run_module(command, run_name="__main__", alter_sys=True)
except SystemExit as end:
    heavy = {"torch", "torchvision", "timm", "albumentations", "cv2", "pyarrow", "scipy.stats", "ray"}
    print("STATUS", end.code, sorted(heavy & set(sys.modules)))
"""


def python(code: str, *argv: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_module_of_cellseg_loads_ray_or_optuna_or_search():
    count, loaded = python(IMPORT_ALL).strip().split("\n")[-1].split(" ", 1)
    assert int(count) > 30
    assert loaded == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "cellseg.train",
        "cellseg.predict",
        "cellseg.data.check",
        "cellseg.data.coco",
        "cellseg.data.import_labels",
        "cellseg.data.synthetic",
    ],
)
def test_help_is_there_at_once_because_nothing_heavy_is_loaded(command):
    lines = python(HELP, command).strip().split("\n")
    assert lines[0].startswith(f"usage: python -m {command}")
    assert "--debug" in "\n".join(lines)
    status, loaded = lines[-1].split(" ", 2)[1:]
    assert status == "0"
    assert loaded == "[]"
