"""The documentation as a site: built without a warning, complete, and free of other hosts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg.config import FIELDS
from search.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install -c constraints.txt -e '.[docs]'")
pytest.importorskip("material", reason="the theme is not installed: pip install -c constraints.txt -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # advertising of the theme, printed as a warning
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_field_and_command_has_its_place_in_the_reference(site):
    reference = (site / "reference.html").read_text(encoding="utf-8")
    assert [key for key in FIELDS if f'id="{key}"' not in reference] == []
    assert "&amp;lt;" not in reference
    commands = (site / "commands.html").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f'id="{name}"' not in commands] == []


def test_every_page_of_the_repository_is_a_page(site):
    named = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    named += [path.relative_to(ROOT) for path in (ROOT / "deploy").rglob("*.md") if path.name != "README.md"]
    assert [str(name) for name in named if not (site / name).with_suffix(".html").is_file()] == []
    assert (site / "deploy" / "slurm" / "index.html").is_file()
    assert (site / "files" / "spaces" / "full.yaml").is_file()
    assert "Search and export on synthetic cells" in (site / "overview.html").read_text(encoding="utf-8")


def test_pages_load_nothing_from_other_hosts(site):
    loads = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?https?:|<link[^>]+rel=\"?(?!canonical)[^>]+href=\"?https?:")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert [str(page.relative_to(site)) for page in pages if loads.search(page.read_text(encoding="utf-8"))] == []


def test_pages_name_each_other_by_title(site):
    first = (site / "index.html").read_text(encoding="utf-8")
    assert '<a href="start.html">Your first search in ten minutes</a>' in first
    assert ".md</a>" not in first
