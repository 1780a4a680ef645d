"""The pages tell the truth: YAML parses, commands take their options, links, files and config keys exist."""

import argparse
import ast
import importlib.util
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pydantic import BaseModel

from cellseg.config import FIELDS, TrialConfig
from cellseg.errors import UserError
from cellseg.files import parse_yaml
from search.ablation import parse_ablation
from search.space import parse_space
from search.space.settings import AshaSettings, Limits, ObjectiveSettings, Resources, StallSettings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md"), ROOT / "results/README.md"])
COMMENTED = sorted(ROOT.glob("spaces/**/*.yaml"))
PACKAGES = ("cellseg", "search", "benchmarks")
CODE = (*PACKAGES, "deploy")
"""Folders with Python files."""
SETTINGS: dict[str, type[BaseModel]] = {
    "asha": AshaSettings,
    "limits": Limits,
    "objective": ObjectiveSettings,
    "resources": Resources,
    "stall": StallSettings,
}
"""Settings of a space that have settings of their own."""
STAND_INS = {"N": "7", "[PART]": ""}
"""Words of a documented command that a user replaces, and something that fits."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class _Parsed(BaseException):
    """Ends a command when its options are accepted; no handler of errors catches it."""


def _fenced(page: Path, language: str) -> list[str]:
    """The code blocks of a language, without their fences and, in lists, their indentation."""
    fenced = rf"^ *```{language}\n(.*?)^ *```$"
    return [
        textwrap.dedent(block)
        for block in re.findall(fenced, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    ]


def _commands(page: Path) -> Iterator[list[str]]:
    """Every ``python -m MODULE`` and ``cellseg-search NAME`` of ours, from its module or name on, without comments."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":
        lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    else:
        lines = [line for block in _fenced(page, "bash") for line in block.splitlines()]
        lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
        lines += re.findall(r"`([^`]+)`", " ".join(text.split()))
    for line in lines:
        for part in re.split(r"&&|\|\|", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # text with an apostrophe
                continue
            yield from _of_ours(words)


def _of_ours(words: list[str]) -> Iterator[list[str]]:
    match words:
        case [python, "-m", module, *rest] if python.endswith("python") and module.split(".")[0] in CODE:
            yield ["-m", module, *rest]
        case [program, name, *rest] if program.endswith("cellseg-search") and "|" not in name:
            yield ["cellseg-search", name, *rest]
        case ["docker", "run", *_] if "cellseg-search" in words:  # the image, then the command
            yield words[len(words) - words[::-1].index("cellseg-search") - 1 :]
        case ["ray", "exec", *_, command]:
            for part in command.split("&&"):
                yield from _of_ours(shlex.split(part))
        case ["sbatch", *_, _] if (script := "deploy/slurm/search.sbatch") in words and "..." not in words:
            yield ["cellseg-search", "run", *words[words.index(script) + 1 :]]


def _main_module(module: str) -> str:
    """The module that ``python -m`` runs: of a package, its ``__main__``."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    return f"{module}.__main__" if spec.submodule_search_locations else module


def _accepts(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command parse its options and end there; SystemExit if it does not take them."""
    door, name, *rest = command
    words = [STAND_INS.get(word, word) for word in rest]
    words = [word for word in words if word]
    if door == "cellseg-search":
        from search.__main__ import COMMANDS

        assert name in COMMANDS, f"cellseg-search has no command {name}"
        module = COMMANDS[name][0]
    else:
        module = name
    if not words:
        _main_module(module)
        return  # often only a mention: `cellseg-search run`
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
        parse(parser, args, namespace)
        raise _Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patch.setattr(sys, "argv", [module, *words])
        with pytest.raises(_Parsed):
            importlib.import_module(_main_module(module)).main(words)


def _unique(commands: Iterator[list[str]]) -> list[list[str]]:
    return [shlex.split(line) for line in dict.fromkeys(map(shlex.join, commands))]


@pytest.mark.parametrize("page", [*PAGES, *COMMENTED], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists_and_takes_its_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in _unique(_commands(page)):
        if command[1].startswith("benchmarks."):
            _assert_benchmark_knows(command[1], command[2:])
        else:
            _accepts(command, monkeypatch)


def _assert_benchmark_knows(module: str, words: list[str]) -> None:
    """Like the other commands, but read from the source: benchmarks import torch and Ray at once, which takes long."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.is_file(), f"there is no module {module}"
    texts = [path.read_text(encoding="utf-8"), (ROOT / "benchmarks" / "measure.py").read_text(encoding="utf-8")]
    literals = {node.value for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    unknown = [word for word in words if word.startswith("--") and word not in literals]
    assert not unknown, f"{module} does not take {unknown}"


def test_the_commands_of_the_pages_are_found() -> None:
    found = {tuple(command[:2]) for page in PAGES for command in _commands(page)}
    assert {("-m", "search.run"), ("-m", "benchmarks.all"), ("cellseg-search", "export")} <= found


@pytest.mark.parametrize("launcher", ["docker", "ray-up", "slurm"])
def test_the_commands_that_launchers_pass_on_are_found(launcher: str) -> None:
    found = list(_commands(ROOT / "deploy" / launcher / "README.md"))
    assert [command for command in found if command[:2] == ["cellseg-search", "run"] and "--data" in command]


def test_an_option_that_a_command_lacks_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _accepts(["-m", "search.export", "--best", "--no-such-option"], monkeypatch)
    assert "--no-such-option" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="does not take"):
        _assert_benchmark_knows("benchmarks.all", ["--no-such-option"])


@pages
def test_every_yaml_block_is_what_it_says(page: Path) -> None:
    for block in _fenced(page, "yaml"):
        where = f"{page.name}: yaml block"
        _check_yaml(parse_yaml(block), where)


def _check_yaml(content: Any, where: str) -> None:
    if not isinstance(content, dict):
        return
    if "rows" in content:
        parse_ablation(content, where)
    elif "space" in content and "metric" in content:
        parse_space(content, where)
    elif all(key in FIELDS for key in content):
        TrialConfig.from_flat(content, where)


def test_a_wrong_yaml_block_is_noticed() -> None:
    with pytest.raises(UserError, match="unknown name"):
        _check_yaml({"metric": "segm/AP", "direction": "maximize", "trials": 1, "epochs": 1, "space": {"lr": 1}}, "x")
    with pytest.raises(UserError, match="lr"):
        _check_yaml({"optim.lr": -1}, "x")


@pages
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: no {target}"
        if anchor:
            assert anchor in _anchors(there), f"{page.name}: no heading {target}"


def _anchors(page: Path) -> set[str]:
    """Anchors of the headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _code(page: Path) -> list[str]:
    """What stands in backticks within the text."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


@pages
def test_every_named_file_exists(page: Path) -> None:
    tops = (*CODE, "docs", "spaces", "tests", "results")
    files = [path.relative_to(ROOT).as_posix() for name in tops for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    for code in _code(page):
        is_ours = code.split("/")[0] in (*CODE, "docs", "spaces", "tests") and "/" in code and " " not in code
        if is_ours or re.fullmatch(r"[\w/]+\.py", code):
            wanted = code.rstrip("/")
            found = any(file == wanted or file.endswith(f"/{wanted}") for file in files)
            assert found, f"{page.name} names {code}, which is not there"


@pages
def test_every_named_config_key_exists(page: Path) -> None:
    for code in _code(page):
        for part, name in re.findall(r"(?<![\w./])([a-z]+)\.([a-z_]+)(?![\w./(])", code):
            if part in TrialConfig.model_fields and name not in ("py", "yaml"):
                assert f"{part}.{name}" in FIELDS, f"{page.name} names {part}.{name}, which is no config field"
            if part in SETTINGS and name not in ("py", "yaml"):
                assert name in SETTINGS[part].model_fields, f"{page.name} names {part}.{name}, which is no setting"


def test_the_map_of_the_design_names_every_file_where_it_is() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    block = text.split("## Where things are")[1].split("## ")[0]
    named: set[str] = set()
    folder = ""
    for line in block.splitlines():
        if match := re.fullmatch(r"    ((?:\w+/)+)(?: {2,}.*)?", line):
            folder = match[1]
        else:
            named |= {f"{folder}{file}" for file in re.findall(r"\b\w+\.py\b", line)}
    there = {
        path.relative_to(ROOT).as_posix()
        for package in CODE
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named - there == set(), "named, but not there"
    assert there - named == set(), "there, but not named"
