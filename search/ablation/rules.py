"""Rules of an ablation beyond the types of its settings: functions from the ablation to problems."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cellseg.config import ACTIVE_WHEN, METRICS, TrialConfig, unknown_key
from cellseg.errors import Problem
from cellseg.names import unknown_name
from search.ablation.ablation import Ablation, Row
from search.space.domain import check_finite_value
from search.space.rules import SAME_IN_ALL_TRIALS, UNRANKED
from search.space.settings import direction_of, gpu_hours_problem

MEASURABLE = (*METRICS, "count/detections")
"""Figures that every validation measures, apart from those of single classes (``segm/AP/CLASS``)."""
_SET_BY_STUDY = {
    "train.metric": "Set metric at the top.",
    "train.seed": "It is made from seed, at the top, and the repeat.",
    "data.root": "Write data: {root: FOLDER} at the top, or give --data.",
}
"""Config fields that no row may set, with the place to set each."""


def row_problems(ablation: Ablation) -> list[Problem]:
    """Check metric, limits, names, references between rows, and single config fields."""
    found = []
    if ablation.direction != (right := direction_of(ablation.metric)):
        found.append(Problem("direction", f"must be '{right}' for {ablation.metric}", f"'{ablation.direction}'"))
    if problem := gpu_hours_problem(ablation.limits, ablation.resources):
        found.append(problem)
    for name in ("target", "plateau_trials"):
        if (limit := getattr(ablation.limits, name, None)) is not None:
            law = "an ablation trains every row, whatever its value"
            remedy = "Remove it; ablations take hours and gpu_hours only."
            found.append(Problem(f"limits.{name}", law, f"{limit:g}", remedy))
    for where, value in (("measured", ablation.measured), ("rows", ablation.rows)):
        if not value:
            found.append(Problem(where, "must name at least one", "none"))
    for name in ablation.measured:
        if name not in MEASURABLE and not name.startswith(("segm/AP/", "segm/AP50/")):
            found.append(unknown_name(name, MEASURABLE, "a validation metric").within("measured"))
    for name, row in ablation.rows.items():
        found += _name_problems(ablation, name, row)
    for where, config in _configs(ablation):
        for key, value in config.items():
            if problem := unknown_key(key) or _ownership_problem(where, key) or check_finite_value(key, value):
                found.append(problem.within(where))
    return found


def _name_problems(ablation: Ablation, name: str, row: Row) -> list[Problem]:
    """Check the name of a row, and the row that it refers to."""
    where = f"rows.{name}"
    found = []
    if not name.strip() or "," in name:
        found.append(Problem("rows", "a name must be text without commas", f"{name!r}", "Rename the row."))
    if row.same_as is None:
        return found
    if row.same_as not in ablation.rows:
        found.append(unknown_name(row.same_as, ablation.rows, "another row").within(f"{where}.same_as"))
    elif row.same_as == name or ablation.rows[row.same_as].same_as is not None:
        found.append(Problem(where, "same_as must name another row that is trained", f"'{row.same_as}'"))
    if row.config:
        law = "a row that is the same as another has no config"
        found.append(Problem(where, law, ", ".join(row.config), "Remove config or same_as."))
    return found


def config_problems(ablation: Ablation) -> list[Problem]:
    """Check the rows' whole configs, once each of their fields is right by itself."""
    if found := override_problems(ablation):
        return found
    trained = [name for name in ablation.rows if ablation.origin(name) == name]
    configs = {name: ablation.row_config(name).to_flat() for name in trained}
    for key in ablation.common:
        if not any(_is_active(key, flat) for flat in configs.values()):
            law = "must have an effect in some row"
            found.append(Problem(f"common: {key}", law, _why_inactive(key), "Remove it."))
    for name, flat in configs.items():
        found += [
            Problem(f"rows.{name}: {key}", "must have an effect", _why_inactive(key), "Remove it.")
            for key in ablation.rows[name].config
            if not _is_active(key, flat)
        ]
    first: dict[str, str] = {}
    for name, flat in configs.items():
        identity = json.dumps({key: value for key, value in flat.items() if _is_active(key, flat)})
        other = first.setdefault(identity, name)
        if other != name:
            law = "rows must differ in what they train"
            remedy = f"Write same_as: {other} instead of config, or change one."
            found.append(Problem(f"rows.{name}", law, f"the config of '{other}'", remedy))
    return found


def override_problems(ablation: Ablation) -> list[Problem]:
    """Check the rows' settings together with the command line's; reports the same problem of several rows once."""
    names_by_problem: dict[Problem, list[str]] = {}
    for name in ablation.trained_rows:
        for problem in TrialConfig.problems_of_flat(ablation.flat_config(name)):
            names_by_problem.setdefault(problem, []).append(name)
        if ablation.flat_config(name).get("data.train_on") == "unvalidated":
            names_by_problem.setdefault(UNRANKED, []).append(name)
    return [problem.within(f"rows.{', '.join(names)}") for problem, names in names_by_problem.items()]


def _configs(ablation: Ablation) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "common", ablation.common
    for name, row in ablation.rows.items():
        yield f"rows.{name}", row.config


def _ownership_problem(where: str, key: str) -> Problem | None:
    if key in _SET_BY_STUDY:
        return Problem(key, "is set by the ablation", "it in a config", _SET_BY_STUDY[key])
    if key in SAME_IN_ALL_TRIALS and where != "common":
        law = "must be the same in all rows, or their figures cannot be compared"
        return Problem(key, law, "it in one", "Use common.")
    return None


def _is_active(key: str, flat: Mapping[str, Any]) -> bool:
    """Return whether the field has an effect beside the other fields' values."""
    return all(flat[other] in values for other, values in ACTIVE_WHEN.get(key, {}).items())


def _why_inactive(key: str) -> str:
    return "other values than " + " and ".join(f"{other} {values}" for other, values in ACTIVE_WHEN[key].items())
