"""MkDocs' hooks: pages from outside of docs/, and pages that are made from the code.

The links of all pages are those of the repository. Here they lead to the site's pages, or to copies of the files that
they name.
"""

import argparse
import posixpath
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the code of this checkout, whatever is installed

from cellseg.config import ACTIVE_WHEN, FIELDS, TrialConfig  # noqa: E402
from cellseg.config.__main__ import describe_values  # noqa: E402
from search.__main__ import COMMANDS, PROGRAM, STAGES  # noqa: E402

OUTSIDE = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/**/*.md", "benchmarks/**/*.md")
"""Pages outside of docs/, which keep their paths."""
_NAMED_BY_FILE = re.compile(r"\[([\w-]+\.md)\]\(([^)\s#]+\.md)")
_LINK = re.compile(r"(\]\()([^)\s#]+)?(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside, the files that any page links to, and those made from the code."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "overview.md", abs_src_path=str(ROOT / "README.md")))
    files.append(File.generated(config, "reference.md", content=reference_page()))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    pages = {file.src_uri for file in files.documentation_pages()}
    for file in files.documentation_pages():
        for match in _LINK.finditer(file.content_string):
            target = _in_repository(file.src_uri, match[2])
            if target is None or _site_path(target) in pages:
                continue
            uri = f"files/{target}"
            if (ROOT / target).is_file() and not target.startswith("docs/") and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead a page's links to where their targets are in the site; a target that is not there becomes text."""

    def moved(match: re.Match[str]) -> str:
        target = _in_repository(page.file.src_uri, match[2])
        if target is None:
            return match[0]
        candidates = (_site_path(target), f"{_site_path(target)}/README.md", f"files/{target}")
        found = next((uri for uri in candidates if files.get_file_from_path(uri) is not None), None)
        if found is None:
            return match[0]  # MkDocs reports it
        return f"{match[1]}{posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or '.')}{match[3] or ''})"

    return _NAMED_BY_FILE.sub(lambda match: titled(match, page, files), _LINK.sub(moved, markdown))


def titled(match: re.Match[str], page: Page, files: Files) -> str:
    """Name a link after the page that it leads to, where the repository's pages name the file."""
    file = files.get_file_from_path(posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match[2])))
    title = re.search(r"^# (.+)$", file.content_string, re.MULTILINE) if file is not None else None
    return match[0] if title is None else f"[{title[1]}]({match[2]}"


def _in_repository(uri: str, target: str | None) -> str | None:
    """The path in the repository that a link of a page leads to; None for one within the page, or to another host."""
    if not target or re.match(r"[a-z]+:", target):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(_repository_path(uri)), target))


def _repository_path(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    if uri == "overview.md":
        return "README.md"
    return uri if (ROOT / uri).is_file() and uri != "README.md" else f"docs/{uri}"


def _site_path(path: str) -> str:
    """Where a page of the repository would lie in the site."""
    return {"README.md": "overview.md", "docs": "README.md"}.get(path, path.removeprefix("docs/"))


def reference_page() -> str:
    """Write every config field with its values, default and meaning."""
    lines = [
        "# Config fields",
        "",
        "A space may sample or fix each of them ([spaces](spaces.md)). `cellseg-search config` prints the same list.",
    ]
    for part, field in TrialConfig.model_fields.items():
        meaning = (field.annotation.__doc__ or "").strip()  # type: ignore[union-attr]
        lines += ["", f"## {part}", "", meaning.splitlines()[0] if meaning else ""]
        for key in (key for key in FIELDS if key.split(".")[0] == part):
            lines += ["", f"### `{key}` {{ #{key} }}", "", f"{_code(describe_values(FIELDS[key]))}, default"]
            lines[-1] += f" `{FIELDS[key].default}`"
            lines += ["", _text(FIELDS[key].description)]
            if key in ACTIVE_WHEN:
                wanted = " and ".join(f"`{other}` is {values}" for other, values in ACTIVE_WHEN[key].items())
                lines += ["", f"Has an effect when {wanted}."]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`"


def _text(description: str) -> str:
    """A docstring as Markdown: one kind of code, and nothing beside it that would be read as HTML."""
    parts = " ".join(description.split()).split("``")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def commands_page() -> str:
    """Write the help of every command, by stage."""
    lines = ["# Commands", "", f"`{PROGRAM} COMMAND --help` prints the same."]
    for name, (module, summary) in COMMANDS.items():
        if name in STAGES:
            lines += ["", f"## {STAGES[name]}"]
        lines += ["", f"### {name}", "", f"{summary[0].upper()}{summary[1:]}.", "", "```text"]
        lines += [_help_of(module, name).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _help_of(module: str, name: str) -> str:
    imported: Any = import_module(module)
    if hasattr(imported, "__path__"):
        imported = import_module(f"{module}.__main__")
    parser: argparse.ArgumentParser = imported._parser()
    parser.prog = f"{PROGRAM} {name}"
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=100)
    parser.description = None
    return parser.format_help()
