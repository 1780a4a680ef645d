"""MLflow: an experiment named after the study, with a run for each trial.

It is kept by the server that ``MLFLOW_TRACKING_URI`` names, else in ``results/<study>/mlflow/mlflow.db``. What a run
holds is asked of MLflow itself when the study is continued.
"""

import logging
import os
import re
from typing import TYPE_CHECKING

from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow
from search.views.trackers.tracker import flat_params, run_name, scalars

if TYPE_CHECKING:
    pass

FOLDER = "mlflow"
SERVER = "MLFLOW_TRACKING_URI"
"""Environment variable of MLflow's."""
DEFAULTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
"""Environment of MLflow, where the user has not set it otherwise: nothing is sent to its makers, and no line of its own
goes over the board."""
STUDY, TRIAL = "cellseg.study", "cellseg.trial"
"""Tags by which the run of a trial is found again. The time of the study's creation is part of the first: a study of
the same name may have been deleted."""
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAILED": "FAILED", "INFEASIBLE": "FAILED"}
"""State -> MLflow's status. It marks a killed run like a failed one, which a trial that was stopped early is not."""
MOST_REASON = 500
"""Characters of a reason; MLflow refuses tags that are too long."""
OF_ALL = "run/seconds"
"""A number that each epoch has."""


class MLflow:
    """Writes runs through MLflow's client."""

    def __init__(self, store: StudyStore):
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        folder = store.folder / FOLDER
        artifacts = None
        if SERVER not in os.environ:
            folder.mkdir(exist_ok=True)
            artifacts = (folder / "artifacts").as_uri()
        self._client: MlflowClient = MlflowClient(tracking_uri=os.environ.get(SERVER, uri(store)))
        found = self._client.get_experiment_by_name(store.name)
        if found is None:
            self._experiment = self._client.create_experiment(store.name, artifact_location=artifacts)
        else:
            self._experiment = found.experiment_id
        self._study, self._metric = f"{store.name} {store.study.get('created', '')}".strip(), store.metric
        self._runs: dict[int, str] = {}
        self._ended: set[int] = set()
        self._find_runs()

    def ended(self) -> set[int]:
        return self._ended

    def begin(self, row: TrialRow) -> int:
        from mlflow.entities import Param

        if (run := self._runs.get(row.number)) is not None:
            self._client.set_terminated(run, "RUNNING")
            return max((point.step for point in self._client.get_metric_history(run, OF_ALL)), default=0)
        tags = {STUDY: self._study, TRIAL: str(row.number), "seed": str(row.seed)}
        run = self._client.create_run(self._experiment, run_name=run_name(row.number), tags=tags).info.run_id
        self._runs[row.number] = run
        self._client.log_batch(run, params=[Param(key, str(value)) for key, value in flat_params(row).items()])
        return 0

    def epoch(self, row: EpochRow, when: float) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_allowed(name), value, int(when * 1000), row.epoch) for name, value in scalars(row)]
        self._client.log_batch(self._runs[row.trial], metrics=metrics)

    def end(self, row: TrialRow) -> None:
        from mlflow.entities import RunTag

        run = self._runs[row.number]
        tags = {"state": row.state.lower(), "reason": row.reason[:MOST_REASON], "node": row.node}
        self._client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items() if value])
        if row.metric is not None:
            self._client.log_metric(run, _allowed(f"best/{self._metric}"), row.metric, step=row.best_epoch)
        self._client.set_terminated(run, STATUS[row.state])
        self._ended.add(row.number)

    def close(self) -> None:
        """Nothing: each call is written when it returns."""

    def _find_runs(self) -> None:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{STUDY}` = '{self._study}'", page_token=token, max_results=1000
            )
            for run in page:
                number = int(run.data.tags[TRIAL])
                self._runs[number] = run.info.run_id
                if run.info.status in STATUS.values():
                    self._ended.add(number)
            token = page.token
            if not token:
                return


def _allowed(name: str) -> str:
    """A name with what MLflow allows: ``segm/AP50@all`` has one sign that it does not."""
    return re.sub(r"[^\w\-. :/]", "-", name)


def uri(store: StudyStore) -> str:
    """Return the address of the study's own database."""
    return f"sqlite:///{store.folder / FOLDER / 'mlflow.db'}"


def describe(store: StudyStore) -> str:
    """Say where the runs are, and how to look at them."""
    if server := os.environ.get(SERVER):
        return f"MLflow: experiment '{store.name}' at {server}"
    return f"MLflow: mlflow ui --backend-store-uri {uri(store)}"
