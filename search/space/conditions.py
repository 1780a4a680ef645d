"""Conditions (``when``): for which values of other keys a sampled key has a value.

A condition looks at the value that the trial has: the sampled one, else the fixed one, else the field's default. A key
that is not sampled in a trial, because its own condition does not hold, therefore counts with its default.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from cellseg.config import FIELDS
from cellseg.errors import Problem

Value = None | bool | int | float | str
When = Mapping[str, tuple[Value, ...]]
"""Every key must have one of its values. Empty: always true."""

DEFAULTS: Mapping[str, Any] = {key: field.default for key, field in FIELDS.items()}
"""Every config field's default, by dotted key."""


def holds(when: When, values: Mapping[str, Any]) -> bool:
    """Return whether ``values`` fulfil every condition. A key without a value fulfils none."""
    return all(other in values and is_among(values[other], allowed) for other, allowed in when.items())


def is_among(value: Any, values: Iterable[Any]) -> bool:
    """Return whether ``value`` equals one of ``values``, where True is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def parse_when(key: str, raw: Any) -> tuple[When, list[Problem]]:
    """Read the condition that a space file gives for ``key``; also returns the problem with its form, if any."""
    if not isinstance(raw, Mapping) or not all(isinstance(value, Value | list) for value in raw.values()):
        return {}, [Problem(key, "when must map keys to a value or a list of values", f"{raw!r}")]
    return {str(other): tuple(value) if isinstance(value, list) else (value,) for other, value in raw.items()}, []


def when_json(when: When) -> dict[str, Any]:
    """Return the part of a domain's mapping in a space file that describes this condition."""
    return {"when": {key: list(values) for key, values in when.items()}} if when else {}
