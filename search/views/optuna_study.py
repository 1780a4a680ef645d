"""A search as an Optuna study, for Optuna's own views of it."""

import json
import warnings
from datetime import datetime

import optuna

from cellseg.errors import UserError
from search.sampling.protocol import Outcome
from search.sampling.record import frozen_trial
from search.storage.store import StudyStore
from search.study.load import experiment_from_json


def optuna_study(store: StudyStore, storage: optuna.storages.BaseStorage | None = None) -> optuna.Study:
    """Make an Optuna study of a search, with the same name, for ``optuna.visualization`` for one.

    Trials are COMPLETE; PRUNED, by others or, with the constraint ``memory`` violated, for lack of memory; FAIL; or
    RUNNING, interrupted ones too. Intermediate values are the objective of the best epoch so far, by epoch. The user
    attributes are ``trial``, our number, and ``reason``, why it ended.

    Args:
        storage: where it is made; None for memory. It must not hold a study of that name.

    Raises:
        UserError: an ablation, which has no space; or a study that this version cannot read.
    """
    experiment = experiment_from_json(store.study["space"], f"{store.folder}/study.json")
    if not experiment.is_search:
        raise UserError(
            f"study '{store.name}': must be a search, but got an ablation. python -m search.report shows it."
        )
    study = optuna.create_study(study_name=store.name, direction=experiment.direction, storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of Optuna call it experimental
        study.set_metric_names([experiment.metric])
    epochs = store.epochs_by_trial()
    for row in store.trials():
        is_open = row.state in {"RUNNING", "INTERRUPTED"}
        outcome, value = (None if is_open else Outcome(row.state)), store.objective.trial_value(row)
        if outcome is Outcome.COMPLETE and value is None:
            outcome = Outcome.FAILED  # its cost is not known
        trial = frozen_trial(
            experiment.domains,
            row.number,
            json.loads(row.params),
            outcome,
            value=value if outcome is Outcome.COMPLETE else None,
            history=store.objective.values_by_epoch(row, epochs.get(row.number, [])),
            reason=row.reason,
        )
        trial.datetime_start = _local_time(row.started)
        trial.datetime_complete = None if is_open else _local_time(row.ended)
        study.add_trial(trial)
    return study


def _local_time(time: str | None) -> datetime | None:
    """Optuna's times have no zone and are local ones."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None) if time else None
