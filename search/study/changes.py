"""What differs between a study as it was and as it is to go on: settings that forbid it, and versions that do not."""

from collections.abc import Mapping
from typing import Any

from cellseg.errors import UserError
from search.study.experiment import Experiment
from search.study.load import experiment_from_json

MAX_NAMED = 8
"""Settings that a message names; a space of another kind differs in all of them."""
_ABSENT = "nothing"


def changed_settings(former: Any, experiment: Experiment) -> str:
    """Name the settings in which an experiment differs from the one that a study was started with, old and new.

    Args:
        former: the experiment in the study's description, as JSON values.
    """
    try:
        before = _flat(experiment_from_json(former, "study.json").identity)
    except (UserError, KeyError, TypeError, ValueError):  # written by another version, or no description at all
        return "another one"
    now = _flat(experiment.identity)
    keys = [key for key in {**before, **now} if before.get(key, _ABSENT) != now.get(key, _ABSENT)]
    named = [f"{key} {before.get(key, _ABSENT)} -> {now.get(key, _ABSENT)}" for key in keys[:MAX_NAMED]]
    if len(keys) > MAX_NAMED:
        named.append(f"and {len(keys) - MAX_NAMED} more")
    return ", ".join(named) or "another one"


def changed_versions(former: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Name the packages whose versions differ from those that last worked on a study, old and new.

    Args:
        former: the study's description.
        now: versions by name. One that the description does not tell of says nothing.
    """
    last = former["continued"][-1] if former.get("continued") else former
    before = last.get("versions", {})
    return [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """JSON values by dotted name; lists are values."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
