"""The whole config, and its flat form with dotted keys."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from pydantic import ValidationError

from cellseg.config.augment import AugmentConfig
from cellseg.config.base import Part
from cellseg.config.data import DataConfig
from cellseg.config.inference import InferenceConfig
from cellseg.config.loss import LossConfig
from cellseg.config.model import ModelConfig
from cellseg.config.optim import OptimConfig
from cellseg.config.problems import describe
from cellseg.config.train import TrainConfig
from cellseg.errors import UserError, raise_all
from cellseg.files import YAMLError, parse_yaml
from cellseg.names import unknown_name


class TrialConfig(Part):
    """Everything one training run depends on, beside the data itself and the device."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], where: str = "config") -> Self:
        """The config with the values of ``flat`` (dotted keys) over the defaults.

        Raises:
            UserError: every unknown key and every bad value, each a line that starts with ``where``.
        """
        problems = [f"{where}: {problem}" for key in flat if (problem := unknown_key(key))]
        nested: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            if key in FIELDS:
                part, name = key.split(".")
                nested.setdefault(part, {})[name] = value
        try:
            config = cls.model_validate(nested)
        except ValidationError as error:
            raise UserError(
                *problems, *(f"{where}: {line}" for line in describe(error.errors(include_url=False)))
            ) from None
        if problems:
            raise UserError(*problems)
        return config

    @classmethod
    def from_nested(cls, nested: Any, where: str = "config") -> Self:
        """As :meth:`from_flat`, from ``{part: {field: value}}`` or any mixture of nested and dotted keys."""
        return cls.from_flat(flatten(nested, where), where)

    def to_flat(self) -> dict[str, Any]:
        """Every field as ``{dotted key: JSON value}``, in the order of declaration."""
        return {f"{part}.{name}": value for part, fields in self.model_dump().items() for name, value in fields.items()}

    def replace(self, **flat: Any) -> Self:
        """A copy with other values, validated. Keys are written with two underscores: ``replace(optim__lr=0.1)``."""
        return type(self).from_flat(self.to_flat() | {key.replace("__", "."): value for key, value in flat.items()})


FIELDS: dict[str, Any] = {
    f"{part}.{name}": field
    for part, part_field in TrialConfig.model_fields.items()
    for name, field in part_field.annotation.model_fields.items()  # type: ignore[union-attr]
}
"""Every dotted key, with pydantic's description of the field."""


def unknown_key(key: str) -> str | None:
    """The problem with ``key`` if it names no field, with the nearest that does; None if it is fine."""
    if key in FIELDS:
        return None
    return unknown_name(str(key), FIELDS, "a config field", "`python -m cellseg.config` lists the fields.")


def check_value(key: str, value: Any) -> str | None:
    """What is wrong with ``value`` for the field ``key``, looking at that field alone; None if it is fine."""
    part, name = key.split(".")
    part_model = TrialConfig.model_fields[part].annotation
    try:
        part_model.__pydantic_validator__.validate_assignment(part_model.model_construct(), name, value)  # type: ignore[union-attr]
    except ValidationError as error:
        # Rules over several fields have no place of their own: they are judged once all values are known.
        own = [finding for finding in error.errors(include_url=False) if finding["loc"]]
        return describe(own, prefix=part)[0] if own else None
    return None


def flatten(nested: Any, where: str) -> dict[str, Any]:
    """``{"optim": {"lr": 1}, "train.seed": 0}`` as ``{"optim.lr": 1, "train.seed": 0}``.

    Raises:
        UserError: not a mapping, or a key given twice.
    """
    if not isinstance(nested, Mapping):
        raise UserError(f"{where}: must be a mapping of settings, but got {type(nested).__name__}.")
    flat: dict[str, Any] = {}
    for key, value in _leaves(nested, ""):
        if key in flat:
            raise UserError(f"{where}: {key}: must be set once, but got it nested and dotted. Remove one.")
        flat[key] = value
    return flat


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``["optim.lr=1e-3"]`` of a command line as ``{"optim.lr": 0.001}``; values are YAML. Keys are not checked here.

    Raises:
        UserError: every item without ``=`` or with a value that is not YAML.
    """
    problems, values = [], {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"--set: must be KEY=VALUE, but got '{text}'.")
            continue
        try:
            values[key.strip()] = parse_yaml(value)
        except YAMLError as error:
            problems.append(f"--set {key}: must be a YAML value, but got '{value}' ({' '.join(str(error).split())}).")
    raise_all(problems)
    return values


def _leaves(mapping: Mapping, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and not prefix and key in TrialConfig.model_fields:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value
