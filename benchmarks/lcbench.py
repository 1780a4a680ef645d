"""LCBench's learning curves from a surrogate: a tuning problem nobody here made.

LCBench (Zimmer, Lindauer & Hutter 2021) trained 2,000 networks on each of 34 OpenML tasks; the surrogate, of YAHPO Gym
(Pfisterer et al. 2022), predicts the curve of any config.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.space import Domain, Range

EPOCHS = 52
"""Full length of a training."""
_INPUTS = (
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "num_layers",
    "max_units",
    "max_dropout",
)
"""The hyperparameters in the order in which the surrogate takes them, behind the epoch."""
_SECONDS, _ACCURACY, _CROSS_ENTROPY = 0, 1, 2
"""Columns of the surrogate's output."""


@dataclass(frozen=True)
class Curve:
    """Learning curve of one config, trained to the end."""

    accuracy: np.ndarray
    """(epochs,) validation accuracy in %, after each epoch."""
    cross_entropy: np.ndarray
    """(epochs,) on the validation set."""
    seconds: np.ndarray
    """(epochs,) of each epoch, positive."""


class Surrogate:
    """The ONNX model of a folder with ``model.onnx``, ``encoding.json`` and ``config_space.json``."""

    def __init__(self, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        self._codes = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"]
        space = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
        self.domains: dict[str, Domain] = {h["name"]: _domain(h) for h in space if h["name"] in _INPUTS}
        """The hyperparameters to search."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Ids of the OpenML tasks."""
        return tuple(name for name in self._codes if name.isdigit())

    def curve(self, task: str, params: Mapping[str, Any]) -> Curve:
        """The learning curve of a config; the same config always has the same."""
        continuous = np.empty((EPOCHS, 1 + len(_INPUTS)), dtype=np.float32)
        continuous[:, 0] = np.arange(1, EPOCHS + 1)
        continuous[:, 1:] = [float(params[name]) for name in _INPUTS]
        categorical = np.full((EPOCHS, 1), self._codes[task], dtype=np.int32)
        names = [node.name for node in self._session.get_inputs()]
        (out,) = self._session.run(None, {names[0]: categorical, names[1]: continuous})
        cumulative = np.maximum.accumulate(out[:, _SECONDS])
        seconds = np.diff(cumulative, prepend=0.0)
        return Curve(
            accuracy=out[:, _ACCURACY].astype(float),
            cross_entropy=out[:, _CROSS_ENTROPY].astype(float),
            seconds=np.maximum(seconds, 1e-3),
        )


def _domain(description: Mapping[str, Any]) -> Range:
    integer = description["type"] == "uniform_int"
    return Range(low=description["lower"], high=description["upper"], log=description["log"], integer=integer)
