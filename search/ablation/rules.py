"""The laws that an ablation must obey beyond the types of its settings.

Every rule is a function from the ablation to problems, lines ``where: law, but got evidence. Remedy.``
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cellseg.config import ACTIVE_WHEN, METRICS, unknown_key
from cellseg.errors import UserError
from cellseg.names import unknown_name
from search.ablation.ablation import Ablation
from search.space.domain import check_finite_value
from search.space.rules import SAME_IN_ALL_TRIALS
from search.space.settings import direction_of, gpu_hours_problem

MEASURABLE = (*METRICS, "count/detections")
"""The metrics of every validation, beside the figures of single classes (``segm/AP/CLASS``)."""
_SET_BY_STUDY = {
    "train.metric": "Set metric at the top.",
    "train.seed": "It is made from seed, at the top, and the repeat.",
    "data.root": "Write data: {root: FOLDER} at the top, or give --data.",
}
"""Config fields that no row may set, and where they come from."""


def row_problems(ablation: Ablation) -> list[str]:
    """Find problems with metric, limits, names, references between rows, and single config fields."""
    found = []
    if ablation.direction != (right := direction_of(ablation.metric)):
        found.append(f"direction: must be '{right}' for {ablation.metric}, but got '{ablation.direction}'.")
    if problem := gpu_hours_problem(ablation.limits, ablation.resources):
        found.append(problem)
    for name in ("target", "plateau_trials"):
        if (limit := getattr(ablation.limits, name, None)) is not None:
            found.append(
                f"limits.{name}: an ablation trains every row, whatever its value, but got {limit:g}. "
                "Remove it; hours and gpu_hours are for ablations too."
            )
    for where, value in (("measured", ablation.measured), ("rows", ablation.rows)):
        if not value:
            found.append(f"{where}: must name at least one, but got none.")
    for name in ablation.measured:
        if name not in MEASURABLE and not name.startswith(("segm/AP/", "segm/AP50/")):
            found.append(f"measured: {unknown_name(name, MEASURABLE, 'a validation metric')}")
    for name, row in ablation.rows.items():
        if not name.strip() or "," in name:
            found.append(f"rows: a name must be text without commas, but got {name!r}. Rename the row.")
        if row.same_as is None:
            continue
        if row.same_as not in ablation.rows:
            found.append(f"rows.{name}.same_as: {unknown_name(row.same_as, ablation.rows, 'another row')}")
        elif row.same_as == name or ablation.rows[row.same_as].same_as is not None:
            found.append(f"rows.{name}: same_as must name another row that is trained, but got '{row.same_as}'.")
        if row.config:
            found.append(
                f"rows.{name}: a row that is the same as another has no config, but got {', '.join(row.config)}. "
                "Remove config or same_as."
            )
    for where, config in _configs(ablation):
        for key, value in config.items():
            if problem := unknown_key(key) or _ownership_problem(where, key) or check_finite_value(key, value):
                found.append(f"{where}: {problem}")
    return found


def config_problems(ablation: Ablation) -> list[str]:
    """Find problems with the rows' whole configs, once each of their fields is right by itself."""
    if found := override_problems(ablation):
        return found
    trained = [name for name in ablation.rows if ablation.origin(name) == name]
    configs = {name: ablation.row_config(name).to_flat() for name in trained}
    for key in ablation.common:
        if not any(_is_active(key, flat) for flat in configs.values()):
            found.append(f"common: {key}: must have an effect in some row, but got {_why_inactive(key)}. Remove it.")
    for name, flat in configs.items():
        found += [
            f"rows.{name}: {key}: must have an effect, but got {_why_inactive(key)}. Remove it."
            for key in ablation.rows[name].config
            if not _is_active(key, flat)
        ]
    first: dict[str, str] = {}
    for name, flat in configs.items():
        identity = json.dumps({key: value for key, value in flat.items() if _is_active(key, flat)})
        other = first.setdefault(identity, name)
        if other != name:
            found.append(
                f"rows.{name}: rows must differ in what they train, but got the config of '{other}'. "
                f"Write same_as: {other} instead of config, or change one."
            )
    return found


def override_problems(ablation: Ablation) -> list[str]:
    """Find rows whose settings do not go together, the command line's included; a problem of several rows once."""
    names_by_problem: dict[str, list[str]] = {}
    for name in ablation.trained_rows:
        where = f"rows.{name}"
        try:
            ablation.row_config(name)
        except UserError as error:
            for problem in error.problems:
                names_by_problem.setdefault(problem.removeprefix(f"{where}: "), []).append(name)
    return [f"rows.{', '.join(names)}: {problem}" for problem, names in names_by_problem.items()]


def _configs(ablation: Ablation) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "common", ablation.common
    for name, row in ablation.rows.items():
        yield f"rows.{name}", row.config


def _ownership_problem(where: str, key: str) -> str | None:
    if key in _SET_BY_STUDY:
        return f"{key}: is set by the ablation, but got it in a config. {_SET_BY_STUDY[key]}"
    if key in SAME_IN_ALL_TRIALS and where != "common":
        return f"{key}: must be the same in all rows, or their figures do not compare, but got it in one. Use common."
    return None


def _is_active(key: str, flat: Mapping[str, Any]) -> bool:
    """Whether the field has an effect beside the other fields' values."""
    return all(flat[other] in values for other, values in ACTIVE_WHEN.get(key, {}).items())


def _why_inactive(key: str) -> str:
    return "other values than " + " and ".join(f"{other} {values}" for other, values in ACTIVE_WHEN[key].items())
