"""A study for Python users: its tables as data frames or plain rows, and its best trial as a model that predicts.

Only files are read, and only those of the study's folder: a search may be running. Torch is loaded with the first
model, pandas with the first data frame.
"""

import json
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.config import TrialConfig
from cellseg.errors import UserError
from search.storage.find import find_study
from search.storage.kept import kept_checkpoint
from search.storage.remote import reading_folder
from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

    from cellseg.data.detections import Detections
    from cellseg.inference.predictor import Predictor


def open_study(name: str | None = None, results: Path | str = "results") -> "StudyReader":
    """The study of that name as its tables are now; open it again to see what a running search added.

    Args:
        name: None for the most recent study.
        results: the folder that holds the studies' folders, or a URI such as ``s3://bucket/prefix``.

    Raises:
        UserError: no such study, or one that cannot be read.
    """
    return StudyReader(find_study(reading_folder(str(results)), name))


class StudyReader:
    """A snapshot of a study."""

    def __init__(self, store: StudyStore):
        self._store = store

    @property
    def name(self) -> str:
        """The study's name: that of its folder."""
        return self._store.name

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return self._store.folder

    @property
    def metric(self) -> str:
        """Name of the metric that the trials' ``metric`` and ``value`` hold."""
        return self._store.metric

    @cached_property
    def trials(self) -> "DataFrame":
        """A row per trial, by number: the columns of :attr:`trial_rows`, then one per validation metric by its name
        (``segm/AP50``), with its value in the trial's best epoch."""
        from pandas import DataFrame

        rows = self.trial_rows
        at = {(row.trial, row.epoch): row.metrics for row in self._store.epochs()}
        best = [at.get((row["number"], row["best_epoch"]), {}) for row in rows]
        names = dict.fromkeys(name for metrics in best for name in metrics)
        flat = [row | {name: metrics.get(name) for name in names} for row, metrics in zip(rows, best, strict=True)]
        return DataFrame(flat, columns=None if flat else _columns(TrialRow, "params", "config"))

    @cached_property
    def epochs(self) -> "DataFrame":
        """A row per trial and epoch, in this order: the columns of :attr:`epoch_rows`."""
        from pandas import DataFrame

        rows = self.epoch_rows
        return DataFrame(rows, columns=None if rows else _columns(EpochRow, "metrics", "losses"))

    @cached_property
    def trial_rows(self) -> list[dict[str, Any]]:
        """The trials as plain values, without pandas: a flat row per trial, by number.

        The columns are the same in all rows: first what is known of a trial (the fields of
        :class:`search.storage.tables.TrialRow`, without its JSON texts), then a column per searched hyperparameter by
        its dotted key. A hyperparameter that does not matter in a trial is None there. The whole config of a trial is
        ``study.trial(number).config``.
        """
        rows = self._store.trials()
        params = [json.loads(row.params) for row in rows]
        keys = dict.fromkeys(key for values in params for key in values)
        return [_facts(row) | {key: values.get(key) for key in keys} for row, values in zip(rows, params, strict=True)]

    @cached_property
    def epoch_rows(self) -> list[dict[str, Any]]:
        """The epochs as plain values, without pandas: a flat row per trial and epoch, in this order.

        The columns are the same in all rows: the fields of :class:`search.storage.tables.EpochRow`, with a column per
        validation metric by its name (``segm/AP50``) and one per training loss by its name (``loss_mask``).
        """
        rows = [asdict(row) for row in self._store.epochs()]
        nested = [row.pop("metrics") | row.pop("losses") for row in rows]
        names = dict.fromkeys(name for values in nested for name in values)
        return [row | {name: values.get(name) for name in names} for row, values in zip(rows, nested, strict=True)]

    @property
    def best(self) -> "TrialReader":
        """The trial that the study ranks first.

        Raises:
            UserError: no trial has a value yet.
        """
        best = self._store.best_trials(1)
        if not best:
            raise UserError(f"{self.folder}: must hold a trial with a value, but got none. Let the search run on.")
        return TrialReader(self._store, best[0])

    def trial(self, number: int) -> "TrialReader":
        """The trial with that number.

        Raises:
            UserError: there is none.
        """
        for row in self._store.trials():
            if row.number == number:
                return TrialReader(self._store, row)
        raise UserError(f"{self.folder}: must hold a trial {number}, but got none. study.trials lists what is there.")


class TrialReader:
    """One trial of a study, as far as it was trained."""

    def __init__(self, store: StudyStore, row: TrialRow):
        self._store = store
        self._row = row

    @property
    def number(self) -> int:
        """The trial's number in the study, from 0."""
        return self._row.number

    @property
    def value(self) -> float | None:
        """Best value of the study's metric; None before the first."""
        return self._row.metric

    @cached_property
    def params(self) -> dict[str, Any]:
        """The values that were sampled, by dotted key."""
        return json.loads(self._row.params)

    @cached_property
    def config(self) -> TrialConfig:
        """The whole config that it was trained with."""
        return TrialConfig.from_stored(json.loads(self._row.config), f"{self._store.folder}: trial {self.number}")

    def model(self, device: str | None = None) -> "Predictor":
        """The model of the trial's best epoch, loaded anew with each call.

        Args:
            device: ``cuda``, ``cuda:1`` or ``cpu``. None: a GPU where there is one.

        Raises:
            UserError: its checkpoint was not kept, or is damaged.
        """
        from cellseg.inference.predictor import load

        return load(kept_checkpoint(self._store, self.number), device)

    def predict(self, image: "np.ndarray | Path | str") -> "Detections":
        """The cells of one image, as :meth:`cellseg.inference.predictor.Predictor.predict` finds them.

        The model is loaded with the first image and kept, on a GPU where there is one.
        """
        return self._predictor.predict(image)

    def evaluate(self, data: Path | str) -> dict[str, float]:
        """COCO metrics of the model on all labelled images of a data set (:func:`cellseg.evaluate.evaluate`).

        Figures on the data of the search include images that the trial was trained on.

        Args:
            data: folder of the data set, read as the trial's own was. Its classes are matched by name.

        Raises:
            UserError: data that cannot be read, or with a class that the model does not know.
        """
        return self._predictor.evaluate(data)

    @cached_property
    def _predictor(self) -> "Predictor":
        return self.model()


def _columns(kind: type, *without: str) -> list[str]:
    return [column.name for column in fields(kind) if column.name not in without]


def _facts(row: TrialRow) -> dict[str, Any]:
    values = asdict(row)
    del values["params"], values["config"]
    return values
