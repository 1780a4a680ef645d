"""The space files that come with the package: found by name, wherever the package is.

In a source tree they are the YAML files of ``spaces/`` beside the packages. A wheel holds the same files as package
data in ``search/spaces/`` (``pyproject.toml`` maps that package to the folder), so there is one copy in Git. They are
only read: results go to ``--results``, caches to the user's cache.
"""

from dataclasses import replace
from pathlib import Path

from cellseg.errors import UserError
from cellseg.names import unknown_name

_PACKAGE = Path(__file__).parents[1]


def shipped_spaces() -> dict[str, Path]:
    """Name -> file, the searches before the ablations of ``reports/``."""
    folders = [folder for folder in (_PACKAGE / "spaces", _PACKAGE.parent / "spaces") if folder.is_dir()]
    assert folders, "the package is not whole: it has no spaces"
    files = [*sorted(folders[0].glob("*.yaml")), *sorted(folders[0].glob("reports/*.yaml"))]
    return {file.stem: file for file in files}


def find_space(path: Path) -> Path:
    """The file itself where there is one; else, for a bare name such as ``quickstart``, the shipped file.

    Raises:
        UserError: no file, where a shipped one may be meant.
    """
    if path.is_file():
        return path
    shipped = shipped_spaces()
    is_name = len(path.parts) == 1 and not path.suffix
    if is_name and path.name in shipped:
        return shipped[path.name]
    if path.exists():
        return path  # its reader says what is wrong with it
    if path.stem in shipped:
        raise UserError(
            f"{path}: the file must exist, but got nothing at that path. "
            f"`{path.stem}` alone names the one that comes with the package."
        )
    if is_name:
        listed = f"These come with the package: {', '.join(shipped)}."
        problem = unknown_name(path.name, shipped, "a YAML file or the name of a shipped space", listed)
        if listed not in problem.remedy:
            problem = replace(problem, remedy=f"{problem.remedy} {listed}")
        raise UserError(problem)
    return path
