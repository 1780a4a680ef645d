"""The base of all parts of a config: strictness, and the types of numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cellseg.errors import Problem, RuleError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=32)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Part(BaseModel):
    """A part of a :class:`cellseg.config.TrialConfig`: frozen, and strict about names, types and ranges."""

    # Strict: "8" is not a number and 1 is not text. An integer is still accepted as a float.
    # Infinity is refused because JSON, and so a checkpoint, cannot hold it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def parse_numbers(text: str, what: str) -> tuple[float, ...]:
    """Parse ``"0.5,1,2"`` into (0.5, 1.0, 2.0).

    Raises:
        RuleError: not a list of rising positive numbers; the message names ``what`` they are.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    rising = all(0 < low < high for low, high in zip((1e-9, *numbers), (*numbers, 1e9), strict=True))
    if not numbers or not rising:
        raise RuleError(Problem("", f"must be rising positive {what} like '0.5,1,2'", f"'{text}'"))
    return numbers
