"""What an installed package gives its users: light imports, types, a version, and everything that commands need."""

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import cellseg
import search

REPOSITORY = Path(__file__).parents[2]

HEAVY = {"torch", "ray", "optuna", "pyarrow", "numpy", "pydantic"}


def python(code: str, *, executable: str = sys.executable, **options) -> str:
    done = subprocess.run([executable, "-c", code], capture_output=True, text=True, timeout=100, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_packages_loads_nothing_heavy():
    loaded = python("import sys, search, cellseg; search.__version__; dir(search), dir(cellseg); print(*sys.modules)")
    assert not HEAVY & set(loaded.split())


def test_reading_a_study_loads_neither_torch_nor_ray():
    loaded = python("import sys, search; search.open_study; print(*sys.modules)").split()
    assert not {"torch", "ray", "optuna"} & set(loaded)


@pytest.mark.parametrize("package", [search, cellseg])
def test_every_public_name_is_there_and_listed(package):
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_the_version_stands_in_pyproject_alone():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert search.__version__ == cellseg.__version__ == project["version"]


def test_the_version_is_known_without_a_source_tree(monkeypatch, tmp_path):
    monkeypatch.setattr(cellseg, "__file__", str(tmp_path / "cellseg" / "__init__.py"))
    assert cellseg.__version__ == version("cellseg-search")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "of-another-project"\nversion = "7"\n')
    assert cellseg.__version__ == version("cellseg-search")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "cellseg-search"\nversion = "7"\n')
    assert cellseg.__version__ == "7"


@pytest.mark.parametrize("name", ["cellseg", "search"])
def test_packages_are_typed(name):
    assert (REPOSITORY / name / "py.typed").is_file()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A virtual environment with the package installed from its wheel; dependencies are those of this one."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    # Building writes into its source, and takes what former builds left there: a copy has neither.
    for name in ("cellseg", "search", "spaces"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    home = folder / "venv"
    venv.create(home, with_pip=False)
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    subprocess.run([*pip, "--python", home, "install", "--no-deps", wheel], check=True, timeout=300)
    # Behind the installed package on the path. Its .pth files are not run: they could lead to a checkout.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return home, wheel


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_holds_types_and_every_space(installed):
    _, wheel = installed
    names = zipfile.ZipFile(wheel).namelist()
    assert {"cellseg/py.typed", "search/py.typed"} <= {*names}
    spaces = {f"search/{file.relative_to(REPOSITORY)}" for file in REPOSITORY.glob("spaces/**/*.yaml")}
    assert spaces and {name for name in names if name.startswith("search/spaces/")} == spaces
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {
        "cellseg",
        "search",
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_installed_package_works_from_any_folder(installed, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    home, _ = installed
    command = home / "bin" / "cellseg-search"
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 200}
    done = subprocess.run([command, "run", "quickstart", "--dry-run"], **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("study quickstart\n")
    done = subprocess.run([command, "--version"], **run)
    assert done.stdout == f"cellseg-search {cellseg.__version__}\n"
    where = python(
        "import sys, search, cellseg; print(search.__file__, cellseg.__file__, cellseg.__version__)\n"
        "assert not {'torch', 'ray'} & set(sys.modules)",
        executable=str(home / "bin" / "python"),
        cwd=tmp_path,
    ).split()
    assert all(str(home) in path for path in where[:2])
    assert where[2] == cellseg.__version__
    assert [*tmp_path.iterdir()] == []
