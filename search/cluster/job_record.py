"""Ray's record of a submitted job, to which a study adds its name and progress: the Jobs page shows both.

Ray has no call that changes a job's metadata, so the record in its key-value store is changed. Ray itself writes it
before the driver starts and after it has ended; its words about the end take the place of the message then, and the
metadata stay.
"""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray._private import ray_constants
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY, JOB_NAME_METADATA_KEY, JobInfoStorageClient
from ray.experimental import internal_kv

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

STUDY, RESULTS, PROGRESS, USER, COMMAND = "study", "results", "progress", "user", "submitted_as"
"""Keys of a job's metadata. A job that has the first is one of ours, however it was started."""
NAME = JOB_NAME_METADATA_KEY
"""Ray's own key for what a job is called."""


@dataclass(frozen=True, slots=True)
class StudyJob:
    """A study that was sent to a cluster, as the Jobs API tells of it."""

    id: str
    """Ray's submission id."""
    study: str
    state: str
    """``pending``, ``running``, ``stopped``, ``succeeded`` or ``failed``."""
    progress: str
    """What the study last told of itself."""
    user: str
    """Who sent it, and from which machine."""
    results: str
    """The results folder on the cluster."""
    command: str
    """The command that sent it; it also continues the study."""
    message: str
    """Ray's words about the state."""
    started: float
    """Time of submission, in seconds since 1970."""
    ended: float | None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.state not in ("pending", "running")


def own_job() -> str | None:
    """Return the submission id of the job that this process is the driver of; None if nobody submitted it."""
    try:
        return json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))["metadata"][JOB_ID_METADATA_KEY]
    except (ValueError, KeyError, TypeError):
        return None


def tell_job(job: str, study: str, results: str, progress: str) -> None:
    """Write a study's progress into the record of the job that it runs in; raises what Ray raises.

    Args:
        results: the results folder.
    """
    key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job).encode()
    record = internal_kv._internal_kv_get(key, namespace=ray_constants.KV_NAMESPACE_JOB)
    if (content := changed(record, study, results, progress)) is not None:
        internal_kv._internal_kv_put(key, content, overwrite=True, namespace=ray_constants.KV_NAMESPACE_JOB)


def changed(record: bytes | None, study: str, results: str, progress: str) -> bytes | None:
    """Return a job's record with the study's progress; None where there is nothing to be changed: the job has ended, or
    the record is of another form than Ray 2.60's."""
    try:
        content = json.loads(record or b"")
        if content["status"] != "RUNNING":
            return None
        metadata = content["metadata"] or {}
        content["metadata"] = {STUDY: study, RESULTS: results} | metadata | {PROGRESS: progress}
        content["message"] = f"{study}: {progress}"
    except (ValueError, KeyError, TypeError):
        return None
    return json.dumps(content).encode()


def study_job(detail: "JobDetails") -> StudyJob | None:
    """Read what the Jobs API tells of a job; None for one that is no study of ours."""
    metadata = detail.metadata or {}
    if detail.submission_id is None or STUDY not in metadata:
        return None
    return StudyJob(
        id=detail.submission_id,
        study=metadata[STUDY],
        state=str(detail.status).lower(),
        progress=metadata.get(PROGRESS, ""),
        user=metadata.get(USER, ""),
        results=metadata.get(RESULTS, ""),
        command=metadata.get(COMMAND, ""),
        message=detail.message or "",
        started=(detail.start_time or 0) / 1000,
        ended=None if not detail.end_time else detail.end_time / 1000,
    )
