"""One sampled parameter: a list of choices or a range of numbers, in Optuna's words."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import numpy as np

from cellseg.config import FIELDS, check_value
from cellseg.errors import Problem
from search.space.conditions import Value, When, is_among, parse_when, when_json

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A parameter that takes one of several values without order."""

    choices: tuple[Value, ...]
    """At least one value, no two equal."""
    when: When = field(default_factory=dict)

    def contains(self, value: Any) -> bool:
        """Return whether the parameter can take ``value``."""
        return is_among(value, self.choices)

    def sample(self, rng: np.random.Generator) -> Value:
        """Draw a value uniformly."""
        return self.choices[int(rng.integers(len(self.choices)))]

    def distribution(self) -> "BaseDistribution":
        """Convert to an Optuna distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that describes this domain in a space file."""
        return {"choices": list(self.choices)} | when_json(self.when)

    def __str__(self) -> str:
        return " | ".join(map(str, self.choices))


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two bounds, both included."""

    low: float
    high: float
    """low < high; both are int where ``integer`` is set."""
    log: bool = False
    """Uniform in the logarithm; low > 0, and no step."""
    step: float | None = None
    """Distance between neighbouring values, from ``low`` to ``high``. None: all numbers between them."""
    integer: bool = False
    when: When = field(default_factory=dict)

    def contains(self, value: Any) -> bool:
        """Return whether the parameter can take ``value``. Floats are on a step within rounding error."""
        number = isinstance(value, int if self.integer else (int, float)) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-8

    def sample(self, rng: np.random.Generator) -> int | float:
        """Draw a value uniformly, in the logarithm if ``log``."""
        if self.integer and self.log:
            # Half a step beyond both ends makes the ends as likely as their neighbours.
            drawn = math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
            return int(min(max(round(drawn), self.low), self.high))
        if self.integer or self.step:
            step = self.step or 1
            drawn = self.low + step * int(rng.integers(round((self.high - self.low) / step) + 1))
            return int(drawn) if self.integer else min(float(drawn), self.high)
        if self.log:
            return min(max(math.exp(rng.uniform(math.log(self.low), math.log(self.high))), self.low), self.high)
        return float(rng.uniform(self.low, self.high))

    def distribution(self) -> "BaseDistribution":
        """Convert to an Optuna distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that describes this domain in a space file."""
        bounds = {"low": self.low, "high": self.high, "type": "int" if self.integer else "float"}
        shape = ({"log": True} if self.log else {}) | ({"step": self.step} if self.step else {})
        return bounds | shape | when_json(self.when)

    def __str__(self) -> str:
        step = f", step {self.step:g}" if self.step else ""
        log = ", log" if self.log else ""
        return f"{self.low:g} .. {self.high:g}{step}{log}"


Domain = Choices | Range

MOST_STEPS = 2**53
"""Beyond that, floats do not tell neighbours apart."""
_DIGITS = 2000
"""Decimal digits of any number of steps: floats range over some 600."""


def parse_domain(key: str, raw: Mapping[str, Any]) -> tuple[Domain | None, list[Problem]]:
    """Read the domain that a space file describes for the config field ``key``, or None and every problem with it.

    Conditions are read here and checked with the whole space.
    """
    allowed = {"choices", "when"} if "choices" in raw else {"low", "high", "log", "step", "type", "when"}
    law = "a domain must hold {choices} or {low, high, log, step, type}, each with an optional when"
    beside = " beside choices" if "choices" in raw else ""
    problems = [Problem(key, law, f"'{name}'{beside}", "Remove it.") for name in raw if name not in allowed]
    when, found = parse_when(key, raw.get("when", {}))
    problems += found
    domain = _parse_choices(key, raw, when, problems) if "choices" in raw else _parse_range(key, raw, when, problems)
    return (None if problems else domain), problems


def check_finite_value(key: str, value: Any) -> Problem | None:
    """Check a value as :func:`cellseg.config.check_value` does, and refuse infinite floats, which it accepts."""
    if isinstance(value, float) and not math.isfinite(value):
        return Problem(key, "must be a finite number", f"{value}")
    return check_value(key, value)


def _parse_choices(key: str, raw: Mapping[str, Any], when: When, problems: list[Problem]) -> Choices | None:
    choices = raw["choices"]
    if not isinstance(choices, list) or not choices:
        problems.append(Problem(key, "choices must be a list of at least one value", f"{choices!r}"))
        return None
    for index, value in enumerate(choices):
        if not isinstance(value, Value):
            law = "a choice must be null, true, false, a number or text"
            problems.append(Problem(key, law, f"{value!r}", "Use text."))
        elif is_among(value, choices[:index]):
            problems.append(Problem(key, "choices must differ", f"{value!r} twice", "Remove one."))
        elif problem := check_finite_value(key, value):
            problems.append(problem)
    return Choices(choices=tuple(choices), when=when)


def _parse_range(key: str, raw: Mapping[str, Any], when: When, problems: list[Problem]) -> Range | None:
    kinds = _number_types(FIELDS[key].annotation)
    default = "float" if float in kinds else "int"
    kind, log = raw.get("type", default), raw.get("log", False)
    found = []
    if not kinds:
        found.append(Problem(key, "the field takes no numbers", "a range", "Use choices."))
    if kind not in ("int", "float"):
        found.append(Problem(key, "type must be int or float", f"{kind!r}"))
    elif kind == "float" and kinds == {int}:
        found.append(Problem(key, "the field takes integers", "type=float", "Use type: int."))
    if not isinstance(log, bool):
        found.append(Problem(key, "log must be true or false", f"{log!r}"))
    for name in ("low", "high", "step"):
        if name not in raw:
            if name != "step":
                remedy = "Give low and high, or choices."
                found.append(Problem(key, f"a domain must have {name}", f"{dict(raw)}", remedy))
        elif not _is_number(raw[name]):
            found.append(Problem(key, f"{name} must be a finite number", f"{raw[name]!r}"))
        elif kind == "int" and not isinstance(raw[name], int):
            remedy = f"Write {round(raw[name])}?"
            found.append(Problem(key, f"{name} must be an integer", f"{raw[name]}", remedy))
    if not found:
        found = _range_problems(key, raw["low"], raw["high"], log, raw.get("step"))
    if not found and (kind == "int" or "step" in raw):
        steps = (raw["high"] - raw["low"]) / raw.get("step", 1)
        if steps > MOST_STEPS:
            found.append(Problem(key, f"a range must have at most {MOST_STEPS:.1e} steps", f"{steps:.1e}"))
    problems += found
    if found:
        return None
    number = int if kind == "int" else float
    step = number(raw["step"]) if "step" in raw and not (log and kind == "int") else None
    return Range(low=number(raw["low"]), high=number(raw["high"]), log=log, step=step, integer=kind == "int", when=when)


def _range_problems(key: str, low: float, high: float, log: bool, step: float | None) -> list[Problem]:
    """Check a range whose bounds and step are numbers of the right type."""
    if not low < high:
        hint = "Swap them?" if low > high else "Write the value alone to fix it."
        return [Problem(key, "low < high must hold", f"low={low}, high={high}", hint)]
    found = [problem for value in (low, high) if (problem := check_finite_value(key, value))]
    if log and low <= 0:
        found.append(Problem(key, "log needs low > 0", f"low={low}", "Raise low, or leave log out."))
    if step is None:
        return found
    if log and not (step == 1 and isinstance(low, int)):
        found.append(Problem(key, "log excludes step", f"step={step}", "Leave one out."))
    elif step <= 0:
        found.append(Problem(key, "step > 0 must hold", f"step={step}"))
    else:
        with localcontext(prec=_DIGITS):
            first, width, rest = (Decimal(str(number)) for number in (low, step, high))
            last = first + (rest - first) // width * width
        if step > high - low or last != rest:
            hint = f"Make high {last}?" if last > low else "Make it smaller."
            found.append(Problem(key, "step must divide high - low", f"low={low}, high={high}, step={step}", hint))
    return found


def _is_number(value: Any) -> bool:
    # Compared, not converted: an integer may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _number_types(annotation: Any) -> set[type]:
    """Return which of int and float a field's annotation admits, through Annotated and unions."""
    if annotation in (int, float):
        return {annotation}
    if get_origin(annotation) is Annotated:
        return _number_types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_number_types, get_args(annotation)))
    return set()
