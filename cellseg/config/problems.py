"""Pydantic's findings in this project's words."""

import re
from collections.abc import Sequence

from pydantic_core import ErrorDetails


def describe(findings: Sequence[ErrorDetails], prefix: str = "") -> list[str]:
    """Pydantic's findings as lines ``key: law, but got evidence.``"""
    own: list[str] = []
    laws: dict[tuple[str, str], list[str]] = {}  # a union like `int | "auto"` yields a finding for each member
    for finding in findings:
        path = [prefix] * bool(prefix) + [str(part) for part in finding["loc"]]
        if finding["type"] == "value_error":  # raised by our own rules; those over several fields name their key
            for message in str(finding["ctx"]["error"]).splitlines():
                own.append(message if re.match(r"^\w+\.\w+: ", message) else f"{'.'.join(path)}: {message}")
        else:
            law = finding["msg"].removeprefix("Input ").replace("should be", "must be")
            key = ".".join(path[:2])
            laws.setdefault((key, repr(finding["input"])), []).append(law[0].lower() + law[1:])
    return [*(f"{key}: {' or '.join(law)}, but got {value}." for (key, value), law in laws.items()), *own]
