"""Groups of images, such as those of a patient or slide, which must not be on both sides of a split."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cellseg.config import DataConfig
from cellseg.config.data import is_group_file
from cellseg.errors import UserError, raise_all
from cellseg.files import read_json, read_yaml

HEADER = ["image", "group"]
"""The optional first line of a CSV file."""

SHOWN = 5
"""Image names that a message lists at most."""


def read_groups(data: DataConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return the group of each of ``names``, as ``data.groups`` defines it.

    Raises:
        UserError: an image without a group, or a file that cannot be understood.
    """
    assert data.groups is not None
    if not is_group_file(data.groups):
        return _groups_of_names(data.groups, names)
    path = Path(data.root or "").expanduser() / data.groups
    of_image = _read_csv(path) if path.suffix.lower() == ".csv" else _read_mapping(path)
    if missing := [name for name in names if name not in of_image]:
        raise UserError(f"{path}: must name a group for each image, but got none for {_some(missing)}. Add them.")
    return tuple(of_image[name] for name in names)


def _groups_of_names(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    found = [re.search(pattern, name) for name in names]
    # A group inside an optional part may take no part in a match.
    if missing := [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]:
        raise UserError(
            f"data.groups: '{pattern}' must find a group in each image's name, but got none in {_some(missing)}. "
            "Change the pattern, or name the groups in a file."
        )
    return tuple(match[1] for match in found if match is not None)


def _read_csv(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: must be a readable CSV file, but got '{reason}'. Check data.groups.") from error
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(io.StringIO(text)), 1)]
    rows = [(number, row) for number, row in rows if any(row)]
    if rows and [cell.lower() for cell in rows[0][1]] == HEADER:
        del rows[0]
    raise_all(_row_problems(path, rows))
    return {image: group for _, (image, group) in rows}


def _row_problems(path: Path, rows: list[tuple[int, list[str]]]) -> Iterator[str]:
    for number, row in rows:
        if len(row) != 2 or not all(row):
            yield f"{path}: line {number}: must be an image's name and its group, but got {','.join(row)!r}."
    for image, count in Counter(row[0] for _, row in rows).items():
        if count > 1:
            yield f"{path}: an image must have one line, but got {image!r} {count} times. Remove the others."


def _read_mapping(path: Path) -> dict[str, str]:
    content: Any = read_json(path) if path.suffix.lower() == ".json" else read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must map image names to groups, but got {type(content).__name__}.")
    raise_all(
        f"{path}: {image}: a group must be a string or a whole number, but got {group!r}."
        for image, group in content.items()
        if not isinstance(group, str | int) or isinstance(group, bool) or group == ""
    )
    return {str(image): str(group) for image, group in content.items()}


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
