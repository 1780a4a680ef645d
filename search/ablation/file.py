"""From the content of a file to a checked :class:`Ablation`: every problem is found, then reported at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cellseg.config import FIELDS, flatten, parse_overrides, problems_of, unknown_key
from cellseg.errors import Problem, UserError, raise_all
from cellseg.files import read_yaml
from cellseg.names import unknown_name
from search.ablation.ablation import Ablation, Row
from search.ablation.rules import config_problems, override_problems, row_problems
from search.space import DataSource, Generate, Limits, Resources
from search.space.settings import StallSettings, inner_names, missing_settings, set_setting

_EXAMPLES: dict[str, Any] = {
    "title": "Freezing",
    "source": "Who reported the figures.",
    "metric": "segm/AP50",
    "direction": "maximize",
    "measured": ["segm/AP50"],
    "rows": {"frozen": {"config": {"model.frozen_stages": 5}}},
}
"""The settings without a default, with an example that stands in for a missing one while the rest is checked."""
_SETTINGS = tuple(name for name in Ablation.model_fields if name not in {"overridden", "selected"})
_PARTS: dict[str, type[BaseModel]] = {
    "resources": Resources,
    "stall": StallSettings,
    "data": DataSource,
    "limits": Limits,
}
_EPOCHS = "train.epochs"


def load_ablation(path: Path, overrides: Sequence[str] = (), rows: Sequence[str] = ()) -> Ablation:
    """Read and check an ablation file.

    Args:
        overrides: ``key=value`` with a value in YAML. A config field gets this value in all rows; other keys are
            settings of the file, such as ``repeats``. ``epochs`` stands for ``train.epochs``.
        rows: names of the rows that are to be trained; none means all.

    Raises:
        UserError: every problem of the overrides and of the ablation with them.
    """
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: must be a mapping of settings, but got {type(content).__name__}. See spaces/reports/."
        )
    content, overridden, problems = _apply_overrides(content, overrides)
    try:
        ablation = parse_ablation(content, str(path))
    except UserError as error:
        raise UserError(*problems, *error.problems) from None
    problems += [f"--rows: {unknown_name(name, ablation.rows, 'a row')}" for name in rows if name not in ablation.rows]
    raise_all(problems)
    ablation = ablation.model_copy(update={"overridden": overridden, "selected": tuple(rows)})
    raise_all(f"{path}: {problem}" for problem in override_problems(ablation))
    return ablation


def parse_ablation(content: Any, where: str) -> Ablation:
    """Parse the ablation that the content of a file describes; every problem begins with ``where``.

    Raises:
        UserError: every problem.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: must be a mapping of settings, but got {type(content).__name__}.")
    problems: list[Problem | str] = [*_unknown_settings(content)]
    problems += missing_settings(content, _EXAMPLES)
    raw = _EXAMPLES | {name: value for name, value in content.items() if name in _SETTINGS}
    raw, found = _flat_configs(raw)
    problems += found
    ablation = None
    try:
        ablation = Ablation.model_validate(raw)
    except ValidationError as error:
        # Unknown names are reported above, with the nearest valid one.
        problems += problems_of(error.errors(include_url=False), skip={"extra_forbidden"})
    if ablation is not None:
        problems += row_problems(ablation) or config_problems(ablation)
    raise_all(f"{where}: {problem}" for problem in problems)
    assert ablation is not None
    return ablation


def _apply_overrides(
    content: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """``content`` with the settings among the overrides, the config fields among them, and problems with the others.

    Raises:
        UserError: text that is no ``key=value``.
    """
    content = dict(content)
    fields: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in parse_overrides(overrides).items():
        if key in FIELDS or key == "epochs":
            fields[_EPOCHS if key == "epochs" else key] = value
        elif key == "trials":
            problems.append(
                f"--trials: an ablation trains each row `repeats` times, but got {value}. "
                "Say how often with --set repeats=N, and which rows with --rows."
            )
        elif not set_setting(content, key, value, _SETTINGS, _PARTS):
            valid = (*_SETTINGS, *inner_names(_PARTS), *FIELDS)
            listed = f"There are {', '.join(_SETTINGS)}."
            problems.append(f"--set {unknown_name(key, valid, 'a config field or a setting', listed)}")
    return content, fields, problems


def _unknown_settings(content: Mapping[str, Any]) -> list[Problem]:
    found = []
    for key in content:
        if not unknown_key(key):
            law = "a config field must stand under common"
            found.append(Problem(str(key), law, "it at the top", "Move it there."))
        elif key not in _SETTINGS:
            found.append(unknown_name(str(key), _SETTINGS, "a setting"))
    for where, model, value in _nested(content):
        if isinstance(value, Mapping):
            unknown = [str(key) for key in value if key not in model.model_fields]
            problems = [unknown_name(key, model.model_fields, "a setting") for key in unknown]
            found += [replace(problem, where=f"{where}.{problem.where}") for problem in problems]
    return found


def _nested(content: Mapping[str, Any]) -> Iterator[tuple[str, type[BaseModel], Any]]:
    """(dotted place, model, value) of every mapping of settings inside the file's."""
    for name, model in _PARTS.items():
        yield name, model, content.get(name)
    data = content.get("data")
    yield "data.generate", Generate, data.get("generate") if isinstance(data, Mapping) else None
    rows = content.get("rows")
    for name, row in rows.items() if isinstance(rows, Mapping) else ():
        yield f"rows.{name}", Row, row


def _flat_configs(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``raw`` with dotted keys in ``common`` and in every row's ``config``, however the file nests them.

    Unknown keys inside rows are left out too: they are told elsewhere.
    """
    problems: list[str] = []

    def flat(value: Any, where: str) -> Any:
        try:
            return flatten(value, where)
        except UserError as error:
            problems.extend(error.problems)
            return {}

    content = dict(raw)
    if "common" in content:
        content["common"] = flat(content["common"], "common")
    if isinstance(content["rows"], Mapping):
        rows: dict[Any, Any] = {}
        for name, row in content["rows"].items():
            row = {} if row is None else row  # `NAME:` alone is the row of the common config
            if isinstance(row, Mapping):
                row = {key: value for key, value in row.items() if key in Row.model_fields}
                if "config" in row:
                    row["config"] = flat(row["config"], f"rows.{name}.config")
            rows[name] = row
        content["rows"] = rows
    return content, problems
