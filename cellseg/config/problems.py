"""Pydantic's findings as problems in this project's words."""

import re
from collections.abc import Collection, Sequence

from pydantic_core import ErrorDetails

from cellseg.errors import Problem, RuleError
from cellseg.names import suggested_value

LAWS = {
    "bool_type": "must be a valid boolean",
    "dict_type": "must be a mapping",
    "extra_forbidden": "must be a known name",
    "finite_number": "must be a finite number",
    "float_type": "must be a valid number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be greater than or equal to {ge}",
    "int_from_float": "must be a valid integer",
    "int_type": "must be a valid integer",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be less than or equal to {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "must be given",
    "model_type": "must be a mapping",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_type": "must be a valid string",
    "tuple_type": "must be a list",
}
"""Pydantic's type of a finding -> the law, with fields of the finding's context."""


def problems_of(findings: Sequence[ErrorDetails], prefix: str = "", skip: Collection[str] = ()) -> list[Problem]:
    """Translate pydantic's findings, those of single values first.

    Args:
        prefix: key of the part that was validated, if not the whole.
        skip: pydantic's types of the findings to leave out.
    """
    own: list[Problem] = []
    # A union like `int | "auto"` yields a finding for each member.
    laws: dict[tuple[str, str], list[ErrorDetails]] = {}
    for finding in findings:
        if finding["type"] in skip:
            continue
        path = [str(part) for part in finding["loc"]]
        if prefix:
            path = [prefix, *path]
        error = finding.get("ctx", {}).get("error")
        if isinstance(error, RuleError):  # rules over several fields name their key; those of one field leave it to us
            own += [problem if problem.where else problem.within(".".join(path)) for problem in error.problems]
        else:
            laws.setdefault((".".join(path[:2]), repr(finding["input"])), []).append(finding)
    return [*(Problem(key, _laws(of_key), value, _hint(of_key)) for (key, value), of_key in laws.items()), *own]


def _laws(findings: Sequence[ErrorDetails]) -> str:
    return " or ".join(map(_law, findings))


def _hint(findings: Sequence[ErrorDetails]) -> str:
    """Suggest the nearest of the texts that a value may be; empty if it may be none, or none is near."""
    expected = [finding["ctx"]["expected"] for finding in findings if finding["type"] == "literal_error"]
    valid = [text for listed in expected for text in re.findall("'([^']*)'", listed)]
    return suggested_value(findings[0]["input"], valid) if valid else ""


def _law(finding: ErrorDetails) -> str:
    law = LAWS.get(finding["type"])
    if law is None:  # none of our fields' types; pydantic's own words are better than none
        return f"must be valid ({finding['msg']})"
    context = finding.get("ctx", {})
    return law.format(**{name: _number(value) for name, value in context.items()})


def _number(value: object) -> object:
    """Write a bound as its field's declaration writes it: 0, not 0.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
