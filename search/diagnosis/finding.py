"""A finding, and the table of all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from cellseg.errors import Problem, UserError

Level = Literal["ok", "warning", "problem"]
STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Finding:
    """What was found about one thing."""

    what: str
    level: Level
    detail: str
    remedy: str = ""
    """The fix, in whole sentences; empty where ``detail`` implies it or nothing is to be fixed."""


def finding_of(what: str, level: Level, problem: Problem) -> Finding:
    """Make a finding of a problem whose place is told by ``what``."""
    return Finding(what, level, f"{problem.law}, but got {problem.got}", problem.remedy)


def findings_of_error(what: str, error: UserError) -> Iterable[Finding]:
    """Make a finding of each problem of an error."""
    return [Finding(what, "problem", text) for text in error.problems]


def findings_table(findings: Sequence[Finding]) -> Table:
    """Make the table of all findings, with their remedies."""
    table = Table("checked", "result", "found", "remedy")
    for finding in findings:
        level = Text(finding.level, style=STYLES[finding.level])
        table.add_row(Text(finding.what), level, Text(finding.detail), Text(finding.remedy))
    return table
