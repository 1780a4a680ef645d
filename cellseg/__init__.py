"""One training run of one Mask R-CNN on one data set of cells. Knows nothing of Ray or Optuna.

    model = cellseg.load("results/quickstart/checkpoints/t0003/best")
    cells = model.predict(image)        # a numpy array, or the path of an image file

Importing the package is instant: torch is loaded when a checkpoint is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellseg.data.detections import Detections
    from cellseg.errors import UserError
    from cellseg.inference.predictor import Predictor, load

    __version__: str

__all__ = ["Detections", "Predictor", "UserError", "__version__", "load"]

_HOMES = {
    "Detections": "cellseg.data.detections",
    "Predictor": "cellseg.inference.predictor",
    "UserError": "cellseg.errors",
    "load": "cellseg.inference.predictor",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'cellseg' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The version that ``pyproject.toml`` gives, of this source tree or of the installed package."""
    import tomllib
    from importlib.metadata import version
    from pathlib import Path

    # The source tree first: the installed package may be another checkout, or an older state of this one.
    source = Path(__file__).parents[1] / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "cellseg-search":
            return project["version"]
    return version("cellseg-search")
