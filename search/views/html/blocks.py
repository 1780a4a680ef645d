"""The parts that a page consists of: sections with figures, tables, pictures and text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A plotly figure as JSON values; colours of text and grid come from the page, light or dark."""

    data: Sequence[Json]
    layout: Json = field(default_factory=dict)
    note: str = ""
    """What it shows, in a sentence below it."""
    small: bool = False
    """Whether several stand side by side where there is room."""
    kind: str = "figure"


@dataclass(frozen=True)
class Table:
    """A table that a click on a heading sorts."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Code:
    """Text to be copied, with a button for that."""

    text: str
    title: str = ""
    open: bool = True
    """Whether it is seen before a click on its title."""
    kind: str = "code"


@dataclass(frozen=True)
class Facts:
    """Large figures with their names."""

    facts: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Picture:
    """An image with true cells beside found ones."""

    title: str
    svg: str
    """Two panels, made here from numbers and names that are escaped."""


@dataclass(frozen=True)
class Pictures:
    """A gallery."""

    pictures: Sequence[Picture]
    note: str = ""
    kind: str = "pictures"


Block = Figure | Table | Text | Code | Facts | Pictures


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    blocks: Sequence[Block]
