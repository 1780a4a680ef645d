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
from cellseg.config.problems import problems_of
from cellseg.config.train import TrainConfig
from cellseg.errors import Problem, UserError, raise_all
from cellseg.files import YAMLError, parse_yaml
from cellseg.names import unknown_name


class TrialConfig(Part):
    """Everything that one training run depends on, except the data itself and the device."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], where: str = "config") -> Self:
        """Build the config with the values of ``flat`` (dotted keys) over the defaults.

        Raises:
            UserError: every unknown key and every bad value, each a line that starts with ``where``.
        """
        config, problems = cls._parse(flat)
        raise_all(problem.within(where) for problem in problems)
        assert config is not None
        return config

    @classmethod
    def from_stored(cls, flat: Mapping[str, Any], where: str) -> Self:
        """Build the config of a trial that any version of this package stored, see :meth:`from_flat`."""
        return cls.from_flat({**BEFORE, **flat}, where)

    @classmethod
    def problems_of_flat(cls, flat: Mapping[str, Any]) -> list[Problem]:
        """List everything for which :meth:`from_flat` refuses ``flat``; empty if it is valid."""
        return cls._parse(flat)[1]

    @classmethod
    def _parse(cls, flat: Mapping[str, Any]) -> tuple[Self | None, list[Problem]]:
        problems = [problem for key in flat if (problem := unknown_key(key))]
        nested: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            if key in FIELDS:
                part, name = key.split(".")
                nested.setdefault(part, {})[name] = value
        try:
            return cls.model_validate(nested), problems
        except ValidationError as error:
            return None, problems + problems_of(error.errors(include_url=False))

    def to_flat(self) -> dict[str, Any]:
        """List every field as ``{dotted key: JSON value}``, in the order of declaration."""
        return {f"{part}.{name}": value for part, fields in self.model_dump().items() for name, value in fields.items()}

    def replace(self, **flat: Any) -> Self:
        """Copy with other values, validated. Keys are written with two underscores: ``replace(optim__lr=0.1)``."""
        return type(self).from_flat(self.to_flat() | {key.replace("__", "."): value for key, value in flat.items()})


BEFORE: dict[str, Any] = {"inference.mask_pasting": "model"}
"""What trials did that were stored before there was a field, where its default is another."""

FIELDS: dict[str, Any] = {
    f"{part}.{name}": field
    for part, part_field in TrialConfig.model_fields.items()
    for name, field in part_field.annotation.model_fields.items()  # type: ignore[union-attr]
}
"""Every dotted key, with pydantic's description of the field."""


def unknown_key(key: str) -> Problem | None:
    """Report ``key`` if it names no field, with the nearest field; None if it is valid."""
    if key in FIELDS:
        return None
    return unknown_name(str(key), FIELDS, "a config field", "`python -m cellseg.config` lists the fields.")


def check_value(key: str, value: Any) -> Problem | None:
    """Report what is wrong with ``value`` for the field ``key``, looking at that field alone; None if it is valid."""
    part, name = key.split(".")
    part_model = TrialConfig.model_fields[part].annotation
    try:
        part_model.__pydantic_validator__.validate_assignment(part_model.model_construct(), name, value)  # type: ignore[union-attr]
    except ValidationError as error:
        # Rules over several fields have no location. They are checked once all values are known.
        own = [finding for finding in error.errors(include_url=False) if finding["loc"]]
        return problems_of(own, prefix=part)[0] if own else None
    return None


def flatten(nested: Any, where: str) -> dict[str, Any]:
    """Flatten ``{"optim": {"lr": 1}, "train.seed": 0}`` to ``{"optim.lr": 1, "train.seed": 0}``.

    Raises:
        UserError: not a mapping, or a key given twice.
    """
    if not isinstance(nested, Mapping):
        raise UserError(Problem(where, "must be a mapping of settings", type(nested).__name__))
    flat: dict[str, Any] = {}
    for key, value in _leaves(nested, ""):
        if key in flat:
            raise UserError(Problem(f"{where}: {key}", "must be set once", "it nested and dotted", "Remove one."))
        flat[key] = value
    return flat


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Parse ``["optim.lr=1e-3"]`` of a command line into ``{"optim.lr": 0.001}``; values are YAML; keys stay unchecked.

    Raises:
        UserError: every item without ``=`` or with a value that is not YAML.
    """
    problems: list[Problem] = []
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(Problem("--set", "must be KEY=VALUE", f"'{text}'"))
            continue
        try:
            values[key.strip()] = parse_yaml(value)
        except YAMLError as error:
            got = f"'{value}' ({' '.join(str(error).split())})"
            problems.append(Problem(f"--set {key}", "must be a YAML value", got))
    raise_all(problems)
    return values


def _leaves(mapping: Mapping, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and not prefix and key in TrialConfig.model_fields:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value
