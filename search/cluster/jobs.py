"""Studies that were sent to a cluster: they run there through Ray's Jobs API, whoever leaves.

A job is the command ``run`` on the head of the cluster. The space travels with it; the package does not, unless asked
for: the machines have it, and every search checks that it is the same on all of them.
"""

import asyncio
import getpass
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

import cellseg
import search
from cellseg.errors import Problem, UserError, first_line
from search.cluster.dashboard import find_dashboard, no_dashboard
from search.cluster.environment import environment
from search.cluster.job_record import COMMAND, NAME, PROGRESS, RESULTS, STUDY, USER, StudyJob, study_job
from search.study.options import SUBMITTED_AS

STOP_SECONDS = 30
"""Ray kills a job that was told to stop after this time. A search leaves within ten seconds."""
AGENT_SECONDS = 60.0
"""The head of a cluster that has just started cannot take jobs for so long."""
POLL_SECONDS = 0.5
NO_AGENT = "No available agent"
"""Words of Ray's answer when the part of it that starts jobs is not there."""
CODE_EXCLUDES = ["__pycache__", "*.pyc", ".git"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is sent to a cluster."""

    study: str
    space: Path
    """File on this machine."""
    results: str
    """Absolute path on the cluster."""
    words: tuple[str, ...]
    """Further words for the command ``run``."""
    command: str
    """The command that is typed here."""
    with_code: bool = False
    """Whether the package travels too."""


class Jobs:
    """The studies that were sent to the cluster at ``address``.

    Args:
        address: see :func:`search.cluster.dashboard.find_dashboard`.

    Raises:
        UserError: from here and from every method: the cluster cannot be reached, or refuses.
    """

    def __init__(self, address: str):
        dashboard = find_dashboard(address)
        self._url = dashboard.url
        logging.getLogger("ray.dashboard").setLevel(logging.ERROR)  # it tells of every package that it sends
        logging.getLogger("ray._private").setLevel(logging.ERROR)
        # Ray prefers an address of the environment to the one it is given, and shows a token to all once it has one.
        headers = dict(dashboard.headers) or {"Authorization": ""}
        with self._told(), environment({ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE: self._url}):
            self._client = JobSubmissionClient(self._url, headers=headers)

    def all(self) -> list[StudyJob]:
        """All studies, the latest first, also those that have ended."""
        with self._told():
            details = self._client.list_jobs()
        found = [job for detail in details if (job := study_job(detail)) is not None]
        return sorted(found, key=lambda job: job.started, reverse=True)

    def find(self, name: str) -> StudyJob:
        """The job of that id, else the one that works on the study of that name, else the last one that did.

        Raises:
            UserError: none, or several that run.
        """
        jobs = self.all()
        for job in jobs:
            if job.id == name:
                return job
        of_study = [job for job in jobs if job.study == name]
        running = [job for job in of_study if not job.is_over]
        if len(running) > 1:
            listed = ", ".join(f"{job.id} ({job.results})" for job in running)
            raise UserError(f"JOB_OR_STUDY: must name one job, but got study '{name}' of {listed}. Name the job.")
        if not of_study:
            known = ", ".join(dict.fromkeys(f"'{job.study}'" for job in jobs)) or "none"
            raise UserError(
                Problem(
                    "JOB_OR_STUDY",
                    "must be a job, or a study that was submitted to this cluster",
                    f"'{name}'; studies there: {known}",
                    "`python -m search.commands.jobs` lists them.",
                )
            )
        return (running or of_study)[0]

    def submit(self, order: Order) -> StudyJob:
        """Send a study to the cluster; it starts by itself.

        Raises:
            UserError: a job works on that study already.
        """
        for job in self.all():
            if not job.is_over and (job.study, job.results) == (order.study, order.results):
                raise UserError(
                    f"--study: one job at a time must work on a study, but got '{order.study}', on which {job.id} "
                    f"works. Follow it with `python -m search.commands.logs --follow {job.id}`, or choose another name."
                )
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(order.space, folder)
            environment_: dict[str, Any] = {
                "working_dir": folder,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), SUBMITTED_AS: order.command},
            }
            if order.with_code:
                environment_ |= {"py_modules": package_folders(), "excludes": CODE_EXCLUDES}
            return self._send(order, environment_)

    def _send(self, order: Order, runtime_env: Mapping[str, Any]) -> StudyJob:
        words = [self._python(), "-m", "search", "run", order.space.name, f"--study={order.study}"]
        words += [f"--results={order.results}", "--address=auto", *order.words]
        metadata = {
            NAME: order.study,
            STUDY: order.study,
            RESULTS: order.results,
            PROGRESS: "not started",
            USER: f"{_user()}@{socket.gethostname()}",
            COMMAND: order.command,
        }
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            with self._told():
                try:
                    # A shell runs the line; a signal must reach the search instead of the shell.
                    job = self._client.submit_job(
                        entrypoint=f"exec {shlex.join(words)}",
                        submission_id=job_id(order.study),
                        runtime_env=dict(runtime_env),
                        metadata=metadata,
                    )
                    return self.look(job)
                except RuntimeError as error:
                    if NO_AGENT not in str(error) or time.monotonic() > deadline:
                        raise
            time.sleep(POLL_SECONDS)

    def _python(self) -> str:
        """The Python that the head's Ray runs with: it has this package, and need not be the first on the path."""
        with self._told(), suppress(ValueError, KeyError, TypeError):  # the form of these answers is not promised
            nodes = self._client._do_request("GET", "/nodes?view=summary").json()["data"]["summary"]
            for node in (node["raylet"] for node in nodes):
                if node.get("isHeadNode"):
                    detail = self._client._do_request("GET", f"/nodes/{node['nodeId']}").json()["data"]["detail"]
                    return python_of(detail.get("cmdline") or [])
        return python_of([])

    def stop(self, job: StudyJob, on_wait: Callable[[], None] = lambda: None) -> StudyJob:
        """Stop a study as Ctrl-C does, and wait until it has ended: nothing is lost, and the same order continues it.

        Raises:
            UserError: it had ended, or does not.
        """
        if job.is_over:
            raise UserError(
                f"JOB_OR_STUDY: must be a job that runs, but got {job.id}, which has {job.state}. Nothing was changed."
            )
        with self._told():
            self._client.stop_job(job.id)
        on_wait()
        deadline = time.monotonic() + STOP_SECONDS + AGENT_SECONDS
        while not (now := self.look(job.id)).is_over:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{job.id}: must end within {STOP_SECONDS} s of the request to stop, but got one that is "
                    f"{now.state}. See the dashboard at {self._url}."
                )
            time.sleep(POLL_SECONDS)
        return now

    def log(self, job: StudyJob) -> str:
        """Return what the job has printed."""
        with self._told():
            return self._client.get_job_logs(job.id)

    def follow(self, job: StudyJob) -> Iterator[str]:
        """Yield what the job prints, from the beginning until it ends, as it comes."""
        with self._told():
            yield from _in_step(self._client.tail_job_logs(job.id))

    def look(self, name: str) -> StudyJob:
        """Return the job of that id as it is now."""
        with self._told():
            job = study_job(self._client.get_job_info(name))
        assert job is not None, "its metadata never goes"
        return job

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what goes wrong between here and the cluster into a line."""
        try:
            yield
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError, aiohttp.ClientError, RayError) as error:  # requests' are OSErrors
            text = first_line(error)
            if NO_AGENT in text:
                raise UserError(
                    Problem(
                        "--address",
                        "the head of the cluster must be able to start jobs",
                        "no agent of the dashboard there",
                        "Wait until the head has started. If another Ray uses port 52365 of that machine, start the "
                        "head with `ray start --head --dashboard-agent-listen-port=PORT`.",
                    )
                ) from error
            raise no_dashboard(self._url, f"'{text}'") from error


def job_id(study: str) -> str:
    """Make a new id for a job: the study's name as far as a URL takes it, and six random digits."""
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", study).strip("-.") or "study"
    return f"{readable}-{secrets.token_hex(3)}"


def _user() -> str:
    """Name this user; in a container that has no name for them, by their number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def python_of(raylet: Sequence[str]) -> str:
    """Return the Python that a raylet starts workers with; the first on the path where its command line is not known.

    Args:
        raylet: its command line.
    """
    mark = "--python_worker_command="
    commands = [shlex.split(word.removeprefix(mark)) for word in raylet if word.startswith(mark)]
    return commands[0][0] if commands and commands[0] else "python"


def package_folders() -> list[str]:
    """Return the folders of this package's modules, as they are here."""
    return [str(Path(module.__path__[0])) for module in (cellseg, search)]


def _in_step(texts: AsyncIterator[str]) -> Iterator[str]:
    """Yield what an asynchronous iterator yields, one by one."""

    async def following() -> str | None:
        return await anext(texts, None)

    with asyncio.Runner() as runner:
        while (text := runner.run(following())) is not None:
            yield text
