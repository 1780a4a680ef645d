"""Suggestions for misspelled names."""

import difflib
from collections.abc import Iterable

from cellseg.errors import Problem


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
