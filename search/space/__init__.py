"""Search spaces: YAML files, checked as a whole."""

from search.space.domain import Choices, Domain, Range
from search.space.file import load_space, parse_space
from search.space.settings import AshaSettings, DataSource, Generate, Limits, ObjectiveSettings, Resources
from search.space.space import Params, Space

__all__ = [
    "AshaSettings",
    "Choices",
    "DataSource",
    "Domain",
    "Generate",
    "Limits",
    "ObjectiveSettings",
    "Params",
    "Range",
    "Resources",
    "Space",
    "load_space",
    "parse_space",
]
