"""Space files: read, checked as a whole, and turned into a :class:`Space`. All problems are reported at once."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cellseg.config import FIELDS, flatten, parse_overrides, problems_of, unknown_key
from cellseg.errors import Problem, UserError, raise_all
from cellseg.files import read_yaml
from cellseg.names import unknown_name
from search.space import rules
from search.space.conditions import DEFAULTS, is_among
from search.space.domain import Domain, check_finite_value, parse_domain
from search.space.settings import (
    AshaSettings,
    DataSource,
    Generate,
    Limits,
    ObjectiveSettings,
    Resources,
    StallSettings,
    StudySettings,
    auto_asha,
    direction_of,
    inner_names,
    missing_settings,
    set_setting,
)
from search.space.space import Space

_MANDATORY = {
    "metric": "segm/AP50",
    "direction": "maximize",
    "trials": 20,
    "epochs": 27,
    "space": {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
}
"""The settings without a default, each with an example that replaces a missing one while the rest is checked."""
_MINIMIZED_METRIC = "loss/validation"
_SETTINGS: tuple[str, ...] = (*StudySettings.model_fields, "space", "start_from")
_PARTS: dict[str, type[BaseModel]] = {
    "asha": AshaSettings,
    "resources": Resources,
    "stall": StallSettings,
    "data": DataSource,
    "limits": Limits,
    "objective": ObjectiveSettings,
}


def load_space(path: Path, overrides: Sequence[str] = ()) -> Space:
    """Read and check a space file.

    Args:
        overrides: ``key=value`` with a value in YAML. A config field gets this one value instead of its domain:
            conditions on it are resolved, keys that can no longer be active are dropped, and so are their values in
            ``start_from``. Other keys are settings of the file, such as ``trials`` or ``asha.grace``.

    Raises:
        UserError: every problem of the overrides and of the space with them.
    """
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise UserError(Problem(str(path), "must be a mapping of settings", type(content).__name__, "See spaces/."))
    content, problems = _apply_overrides(content, overrides)
    try:
        space = parse_space(content, str(path))
    except UserError as error:
        raise UserError(*problems, *error.problems) from None
    raise_all(problems)
    return space


def _apply_overrides(content: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Set every ``key=value`` in a copy of ``content``; also returns the problems with unknown keys.

    Raises:
        UserError: text that is not ``key=value``.
    """
    problems: list[str] = []
    content = dict(content)
    for key, value in parse_overrides(overrides).items():
        if key in FIELDS:
            content = _fix(content, key, value)
        elif not set_setting(content, key, value, _SETTINGS, _PARTS):
            valid = (*FIELDS, *_SETTINGS, *inner_names(_PARTS))
            listed = f"Settings are {', '.join(_SETTINGS)}."
            problems.append(f"--set {unknown_name(key, valid, 'a config field or a setting', listed)}")
    return content, problems


def parse_space(content: Any, where: str) -> Space:
    """Build the space that the content of a space file describes; every problem begins with ``where``.

    Raises:
        UserError: every problem.
    """
    if not isinstance(content, Mapping):
        raise UserError(Problem(where, "must be a mapping of settings", type(content).__name__))
    problems: list[Problem | str] = []
    settings, found = _parse_settings(content)
    problems += found
    domains, fixed, broken, found_keys = _parse_keys(content.get("space", _MANDATORY["space"]))
    starts, found_starts = _parse_starts(content.get("start_from", []))
    problems += [*found_keys, *found_starts]

    problems += rules.ownership_problems(domains, fixed)
    problems += rules.condition_problems(domains, broken)
    try:
        domains = {key: domains[key] for key in rules.dependency_order(domains)}
    except CycleError as error:
        problems.append(rules.circle_problem(error))
    else:
        problems += rules.start_problems(starts, domains, broken)
        # The direction follows from the metric, with which it was compared.
        chosen = {name: value for name, value in settings if name != "direction"}
        space = Space(**chosen, domains=domains, fixed=fixed, start_from=tuple(starts))
        draws = rules.random_draws(space)
        problems += rules.relevance_problems(space, draws, broken)
        if not problems:
            problems += rules.combination_problems(space, draws)
        if not problems:
            return space
    raise UserError(*(f"{where}: {problem}" for problem in problems))


def _parse_settings(content: Mapping[str, Any]) -> tuple[StudySettings, list[Problem]]:
    """Return the settings, or examples of them where there are problems, and these problems."""
    examples = _examples(content)
    problems = [_misplaced(key) for key in content if key not in _SETTINGS]
    problems += missing_settings(content, examples)
    settings = {name: example for name, example in examples.items() if name != "space"}
    raw = settings | {name: value for name, value in content.items() if name in StudySettings.model_fields}
    raw["asha"], found = _asha_switch(raw.get("asha", "auto"), raw["epochs"])
    problems += found
    for name in ("resources", "data", "limits", "objective"):
        if name in raw and raw[name] is None:
            problems.append(Problem(name, "must be a mapping", "nothing", "Fill it in or leave it out."))
    nested: list[tuple[str, type[BaseModel], Any]] = [(name, model, raw.get(name)) for name, model in _PARTS.items()]
    data = raw.get("data")
    nested.append(("data.generate", Generate, data.get("generate") if isinstance(data, Mapping) else None))
    unknown = [
        unknown_name(f"{name}.{key}", [f"{name}.{field}" for field in model.model_fields], "a setting")
        for name, model, value in nested
        if isinstance(value, Mapping)
        for key in value
        if key not in model.model_fields
    ]
    problems += unknown
    try:
        return StudySettings.model_validate(raw), problems
    except ValidationError as error:
        # Unknown names are reported above, with the nearest valid one.
        problems += problems_of(error.errors(include_url=False), skip={"extra_forbidden"})
        return StudySettings.model_validate({name: _MANDATORY[name] for name in settings}), problems


def _examples(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mandatory settings; the metric fits a given direction, and the direction a given metric."""
    examples = dict(_MANDATORY)
    if content.get("direction") == direction_of(_MINIMIZED_METRIC):
        examples["metric"] = _MINIMIZED_METRIC
    examples["direction"] = direction_of(str(content.get("metric", examples["metric"])))
    return examples


def _asha_switch(raw: Any, epochs: Any) -> tuple[Any, list[Problem]]:
    """Translate ``auto``, and ``off`` and ``on`` (booleans to YAML), into the settings they mean.

    Args:
        epochs: full length of a trial, not checked yet.
    """
    if raw is False or raw == "off":
        return None, []
    if raw is True or (isinstance(raw, str) and raw in {"on", "auto"}):
        known = isinstance(epochs, int) and 1 <= epochs < 10**9
        return (auto_asha(epochs).model_dump() if known else {}), []
    if raw is None or isinstance(raw, str):
        return {}, [Problem("asha", "must be auto, {grace, reduction} or off", f"{raw!r}")]
    return raw, []


def _parse_keys(raw: Any) -> tuple[dict[str, Domain], dict[str, Any], frozenset[str], list[Problem | str]]:
    """Return sampled domains, fixed values, keys that are neither because something is wrong with them, problems."""
    domains: dict[str, Domain] = {}
    fixed: dict[str, Any] = {}
    try:
        flat = flatten(raw, "space")
    except UserError as error:
        return domains, fixed, frozenset(), list(error.problems)
    problems: list[Problem | str] = []
    for key, value in flat.items():
        if problem := unknown_key(key):
            problems.append(problem)
        elif isinstance(value, Mapping):
            domain, found = parse_domain(key, value)
            problems += found
            if domain:
                domains[key] = domain
        elif problem := check_finite_value(key, value):
            problems.append(problem)
        else:
            fixed[key] = value
    if not domains and not problems:
        remedy = "Train a single config with python -m cellseg.train."
        problems.append(Problem("space", "at least one key must be sampled", "fixed values only", remedy))
    return domains, fixed, frozenset(flat) - set(domains) - set(fixed), problems


def _parse_starts(raw: Any) -> tuple[list[dict[str, Any]], list[Problem | str]]:
    if not isinstance(raw, list):
        return [], [Problem("start_from", "must be a list of configs", type(raw).__name__)]
    starts: list[dict[str, Any]] = []
    problems: list[Problem | str] = []
    for index, entry in enumerate(raw):
        try:
            starts.append(flatten(entry, f"start_from[{index}]"))
        except UserError as error:
            problems += error.problems
    return starts, problems


def _misplaced(key: Any) -> Problem:
    if not unknown_key(key):
        return Problem(str(key), "a config field must stand under space", "it at the top", "Move it there.")
    return unknown_name(str(key), _SETTINGS, "a setting")


def _fix(content: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Set the config field ``key`` of ``content`` to a value or another domain, with all that follows from it."""
    content = dict(content)
    if not isinstance(content.get("space"), Mapping):
        return content  # reported when it is parsed
    flat = flatten(content["space"], "space")
    flat[key] = value
    gone = set() if isinstance(value, Mapping) else {key}
    values = dict.fromkeys(gone, value)
    pending = list(gone)
    while pending:  # a key that depends on a removed one loses its condition, or is removed too and has its default
        settled = pending.pop()
        for other, domain in list(flat.items()):
            when = domain.get("when") if isinstance(domain, Mapping) else None
            if not isinstance(when, Mapping) or settled not in when:
                continue
            allowed = when[settled] if isinstance(when[settled], list) else [when[settled]]
            if is_among(values[settled], allowed):
                flat[other] = {**domain, "when": {k: v for k, v in when.items() if k != settled}}
            else:
                del flat[other]
                gone.add(other)
                values[other] = DEFAULTS.get(other)
                pending.append(other)
    content["space"] = flat
    if isinstance(content.get("start_from"), list):
        content["start_from"] = [_without(entry, gone, flat) for entry in content["start_from"]]
        content["start_from"] = [entry for entry in content["start_from"] if entry != {}]
    return content


def _without(start: Any, keys: set[str], space: Mapping[str, Any]) -> Any:
    """Remove ``keys`` from a start config, and the values whose conditions only held beside them."""
    if not isinstance(start, Mapping):
        return start
    flat = flatten(start, "start_from")
    rest = {key: value for key, value in flat.items() if key not in keys}
    if len(rest) == len(flat):
        return rest
    while open_keys := [key for key in rest if _sampled_conditions(space, key) - rest.keys()]:
        for key in open_keys:
            del rest[key]
    return rest


def _sampled_conditions(space: Mapping[str, Any], key: str) -> set[str]:
    """Return the sampled keys that the condition of ``key`` names."""
    domain = space.get(key)
    when = domain.get("when") if isinstance(domain, Mapping) else None
    return {other for other in when if isinstance(space.get(other), Mapping)} if isinstance(when, Mapping) else set()
