"""List every config field with its values, default and meaning: ``python -m cellseg.config [PART]``."""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.config.conditions import ACTIVE_WHEN
from cellseg.config.trial import FIELDS, TrialConfig


def field_lines(key: str) -> list[str]:
    """Describe a field in lines for people."""
    field = FIELDS[key]
    lines = [f"{key}: {describe_values(field)} = {field.default}"]
    lines += textwrap.wrap(" ".join(field.description.split()), 112, initial_indent="    ", subsequent_indent="    ")
    if key in ACTIVE_WHEN:
        conditions = " and ".join(f"{other} is {values}" for other, values in ACTIVE_WHEN[key].items())
        lines.append(f"    Has an effect when {conditions}.")
    return lines


def describe_values(field: Any) -> str:
    """Write the type of a field as its class body does, with the bounds that pydantic keeps apart."""
    return " ".join([_type_name(field.annotation), *_bounds(field.metadata)])


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    arguments = get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return " ".join([_type_name(arguments[0]), *_bounds([bound for f in arguments[1:] for bound in f.metadata])])
    if not arguments:
        return getattr(annotation, "__name__", str(annotation))
    literal = getattr(get_origin(annotation), "_name", None) == "Literal"
    return " | ".join(str(part) if literal else _type_name(part) for part in arguments)


def _bounds(metadata: list[Any]) -> list[str]:
    words = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    bounds = [(word, getattr(part, name, None)) for part in metadata for name, word in words.items()]
    return [f"{word} {bound}" for word, bound in bounds if bound is not None]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellseg.config", description=__doc__)
    parser.add_argument(
        "part", nargs="?", choices=list(TrialConfig.model_fields), help="list only the fields of this part"
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    for key in FIELDS:
        if arguments.part in (None, key.split(".")[0]):
            say("\n".join(field_lines(key)))
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
