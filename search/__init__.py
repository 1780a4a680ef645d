"""Hyperparameter search over cellseg: YAML spaces, Optuna sampling, ASHA, Ray Tune, Parquet tables.

    study = search.open_study("quickstart")
    study.trials                        # a data frame: a row per trial, a column per hyperparameter and metric
    cells = study.best.predict(image)

Importing the package is instant: neither Ray nor torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.storage.reader import StudyReader, TrialReader, open_study

    __version__: str

__all__ = ["StudyReader", "TrialReader", "__version__", "open_study"]

_HOMES = {
    "TrialReader": "search.storage.reader",
    "StudyReader": "search.storage.reader",
    "__version__": "cellseg",
    "open_study": "search.storage.reader",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'search' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
