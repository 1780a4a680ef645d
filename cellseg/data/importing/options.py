"""Choices about the files of other tools that a folder alone does not answer."""

from dataclasses import dataclass

from cellseg.errors import UserError

DEFAULT_CLASS = "cell"
"""The class of cells for which the files name none."""


@dataclass(frozen=True)
class ImportOptions:
    """Choices of the command ``import``."""

    masks: str | None = None
    """Layout ``labels``: where the mask of an image lies below the folder, such as ``masks/{name}_lab.tif``. With
    ``{class}``, each class has masks of its own."""
    class_name: str = DEFAULT_CLASS
    """The class of cells for which the files name none."""
    class_key: str | None = None
    """The property that holds the class of a cell, where a format has several. None: the usual ones."""


def require_extra(module: str, where: str) -> None:
    """Check that a library of the extra ``import`` is installed.

    Raises:
        UserError: it is not; the message has the line that installs it.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise UserError(
            f"{where}: needs the package {module}, but got none. Install it: pip install 'cellseg-search[import]'"
        )
