"""What to say about a name that nobody knows."""

import difflib
from collections.abc import Iterable


def unknown_name(name: str, valid: Iterable[str], what: str, otherwise: str | None = None) -> str:
    """``name: must be WHAT, but got an unknown name.`` and the nearest of the ``valid`` ones.

    A name whose last dotted part is right counts as near: ``lr`` for ``optim.lr``.

    Args:
        otherwise: the hint where none is near. None: all valid ones.
    """
    valid = list(valid)
    same_tail = [other for other in valid if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    near = (same_tail or difflib.get_close_matches(name, valid, n=1, cutoff=0.5))[:1]
    hint = f"Did you mean '{near[0]}'?" if near else otherwise or f"There are {', '.join(valid)}."
    return f"{name}: must be {what}, but got an unknown name. {hint}"
