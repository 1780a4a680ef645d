"""Words in messages: the nearest of valid names and values, numbers with their nouns."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from cellseg.errors import Problem

_ENDS = re.compile("[./]")
_LEAST_PREFIX = 3
_SWITCHES = {False: ("off", "no", "false", "none"), True: ("on", "yes", "true")}
"""What YAML reads as booleans, or people write for one, beside the value."""


def suggested_value(value: Any, valid: Sequence[str]) -> str:
    """Ask for the nearest of the ``valid`` values in a sentence; empty if none is near.

    Case does not count, and neither does what stands before the last slash or behind a beginning: ``AP50`` is near
    ``segm/AP50``, ``loss`` near ``loss/validation``, ``Flip`` near ``flips``.
    """
    if isinstance(value, bool):
        switches = [other for other in valid if other in _SWITCHES[value]]
        return f"YAML reads {switches[0]} as {str(value).lower()}: write '{switches[0]}' in quotes." if switches else ""
    if value is None:
        value = "none"
    if not isinstance(value, str):
        return ""
    wanted, lower = value.lower(), {other.lower(): other for other in reversed(valid)}
    near = [other for other in valid if _ENDS.split(other.lower())[-1] == _ENDS.split(wanted)[-1]]
    if len(wanted) >= _LEAST_PREFIX:
        near += [other for other in valid if other.lower().startswith(wanted)]
    near += [lower[other] for other in difflib.get_close_matches(wanted, lower, n=1, cutoff=0.6)]
    return f"Did you mean '{near[0]}'?" if near else ""


def unknown_name(name: str, valid: Iterable[str], what: str, otherwise: str | None = None) -> Problem:
    """Report a name that is not ``what`` it must be, with the nearest of the ``valid`` ones.

    A name whose last dotted part is right counts as near: ``lr`` for ``optim.lr``.

    Args:
        otherwise: the hint where none is near. None: list all valid names.
    """
    valid = list(valid)
    near = nearest(name, valid)
    hint = f"Did you mean '{near}'?" if near else otherwise or f"Valid names are {', '.join(valid)}."
    return Problem(name, f"must be {what}", "an unknown name", hint)


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that is most like ``name``, or None if none is near."""
    valid = list(valid)
    same_tail = [other for other in valid if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = same_tail or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return near[0] if near else None


def counted(count: float, noun: str, *, plural: str = "") -> str:
    """Write a number with its noun: ``1 trial``, ``2 trials``, ``1,200 images``, ``0.5 GPUs``.

    Args:
        plural: where it is not ``noun`` with an s.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural or f'{noun}s'}"
