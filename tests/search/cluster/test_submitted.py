"""Studies that are submitted to a real cluster with tokens, which the tests start: commands as people type them."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from spacefiles import TINY_SPACE

from search.cluster.metrics import METRICS
from search.storage.store import StudyStore

REPOSITORY = Path(__file__).parents[3]
TOKEN = "5e" * 32
PATIENCE = 400.0
"""Seconds after which a thing that must happen has not: machines that run tests are slow."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="ends processes by their groups"),
]


def wait_for(what: Callable[[], Any], why: Callable[[], Any] = lambda: "") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, why()
        time.sleep(1)
    return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class Head:
    """A cluster of one machine, and a user's shell there."""

    folder: Path
    url: str
    gcs: str
    environment: dict[str, str]

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "search", *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def api(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def job(self, name: str) -> dict[str, Any]:
        return self.api(f"/api/jobs/{name}")

    def submit(self, *words: str) -> str:
        done = self.run("submit", "tiny cells.yaml", "--address", self.url, "--results", str(self.results), *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return submitted(done.stdout)

    @property
    def results(self) -> Path:
        return self.folder / "shared results"


def submitted(output: str) -> str:
    found = re.search(r"^Submitted study .* as (\S+)\.", output, re.MULTILINE)
    assert found, output
    return found[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    folder = tmp_path_factory.mktemp("user")
    (folder / "tiny cells.yaml").write_text(TINY_SPACE)
    user = {key: value for key, value in environment.items() if key != "RAY_AUTH_MODE"}
    temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short names
    process = None
    try:
        for _ in range(4):  # Ray gives a node half a minute to start, which a busy machine may need more of
            process, head = start(environment, user, folder, temporary)
            if is_up(process, head, temporary / "head.log"):
                break
            end(process)
        assert process is not None and process.poll() is None, (temporary / "head.log").read_text()
        yield head
    finally:
        if process is not None:
            end(process)
        shutil.rmtree(temporary, ignore_errors=True)


def start(
    environment: dict[str, str], user: dict[str, str], folder: Path, temporary: Path
) -> tuple[subprocess.Popen, Head]:
    port, dashboard, agent = free_ports(3)
    options = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--temp-dir={temporary}", "--num-cpus=2", "--num-gpus=0", "--include-dashboard=true", "--block"]
    ray = str(Path(sys.executable).with_name("ray"))
    with (temporary / "head.log").open("w") as file:
        process = subprocess.Popen(
            [ray, "start", "--head", "--disable-usage-stats", *options],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, Head(folder, f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", user)


def is_up(process: subprocess.Popen, head: Head, log: Path) -> bool:
    """Wait until a head answers and says so; False if it ended instead."""
    wait_for(lambda: process.poll() is not None or (answers(head) and "Ray runtime started" in log.read_text()))
    return process.poll() is None


def end(process: subprocess.Popen) -> None:
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.wait(30)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            pass


def answers(head: Head) -> bool:
    try:
        # The dashboard answers before there is a machine, which may yet fail to start.
        return bool(head.api("/nodes?view=summary")["data"]["summary"])
    except (OSError, KeyError):
        return False


def exported(head: Head) -> dict[str, float]:
    """The values of our metrics, by name and tags, as Prometheus would read them where Ray's discovery sends it."""
    found = {}
    for target in head.api("/api/prometheus/sd")[0]["targets"]:
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            continue  # the ports of the head's own parts may be closed
        for name, tags, value in re.findall(r"^(ray_cellseg_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            all_tags = dict(re.findall(r'(\w+)="([^"]*)"', tags))
            own = [all_tags[key] for key in ("study", "state", "node", "metric") if key in all_tags]
            found[" ".join([name, *own])] = float(value)
    return found


def test_a_study_goes_on_after_the_shell_that_submitted_it_is_gone(head):
    command = [sys.executable, "-m", "search", "submit", "tiny cells.yaml", "--results", str(head.results)]
    line = shlex.join([*command, "--trials", "8", "--address", head.gcs])
    shell = subprocess.Popen(
        ["bash", "-c", f"{line} && sleep 1000"],
        cwd=head.folder,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    for text in shell.stdout:
        lines.append(text)
        if text.startswith("Stop it:"):
            break
    os.killpg(shell.pid, signal.SIGKILL)  # the laptop is closed
    shell.wait(30)
    job = submitted("".join(lines))
    assert job.startswith("tiny-cells-")

    seen: dict[str, float] = {}
    told = set()

    def is_over() -> bool:
        seen.update(exported(head))
        info = head.job(job)
        if info["status"] == "RUNNING":
            told.add((info["metadata"]["progress"], info["message"]))
        return info["status"] not in ("PENDING", "RUNNING")

    wait_for(is_over)
    log = head.run("logs", job, "--address", head.url, "--lines", "100")
    info = head.job(job)
    assert info["status"] == "SUCCEEDED", log.stdout
    assert info["metadata"]["job_name"] == info["metadata"]["study"] == "tiny cells"
    assert info["metadata"]["progress"].startswith("8 of 8 trials, 0 running, best segm/AP50 0.")
    assert any(message == f"tiny cells: {progress}" for progress, message in told), told
    assert f"\n{job} of study tiny cells: succeeded, 8 of 8 trials" in log.stdout
    assert "Best: trial t000" in log.stdout
    assert [row.state in ("COMPLETE", "PRUNED") for row in StudyStore.open(head.results / "tiny cells").trials()] == [
        True
    ] * 8

    listed = head.run("jobs", "--address", head.gcs)
    assert listed.returncode == 0, listed.stderr
    row = next(line for line in listed.stdout.splitlines() if line.startswith(job))
    assert "tiny cells  succeeded  8 of 8 trials, 0 running" in row

    names = {key.split()[0] for key in seen}
    assert names == {metric.exported for metric in METRICS} - {"ray_cellseg_losses_total"}, "nothing was lost"
    assert seen["ray_cellseg_reports_total tiny cells"] >= 8
    assert seen["ray_cellseg_target_trials tiny cells"] == 8
    assert seen["ray_cellseg_free_bytes tiny cells"] > 0


def test_a_study_is_stopped_and_the_same_command_continues_it(head):
    name = ["--study", "stopped", "--send-code"]
    job = head.submit(*name, "--trials", "500")
    wait_for(
        lambda: re.match("[1-9]", head.job(job)["metadata"]["progress"]),
        lambda: head.run("logs", job, "--address", head.url),
    )
    twice = head.run(
        "submit", "tiny cells.yaml", "--address", head.url, "--results", str(head.results), *name, "--trials", "500"
    )
    assert twice.returncode == 2
    assert f"error: --study: one job at a time must work on a study, but got 'stopped', on which {job} works." in (
        twice.stderr
    )
    follower = subprocess.Popen(
        [sys.executable, "-m", "search", "logs", "--follow", "stopped", "--address", head.url],
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith("t0000  complete") for line in follower.stdout), follower.stderr.read()
    done = head.run("stop", "stopped", "--address", head.url)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^Stopped study stopped \({job}\): \d+ of 500 trials, 0 running", done.stdout, re.MULTILINE)
    assert "\nContinue it: cellseg-search submit 'tiny cells.yaml' --address" in done.stdout
    followed, _ = follower.communicate(timeout=PATIENCE)
    assert "Stopping: got SIGTERM ..." in followed
    assert "continues where it was." in followed
    assert followed.splitlines()[-1].startswith(f"{job} of study stopped: stopped, ")

    before = {row.number: row for row in StudyStore.open(head.results / "stopped").trials()}
    finished = {number: row for number, row in before.items() if row.state in ("COMPLETE", "PRUNED")}
    assert finished
    assert {row.state for row in before.values()} <= {"COMPLETE", "PRUNED", "INTERRUPTED"}
    again = head.submit(*name, "--trials", str(len(finished) + 2))
    assert again != job
    wait_for(lambda: head.job(again)["status"] not in ("PENDING", "RUNNING"))
    assert head.job(again)["status"] == "SUCCEEDED", head.run("logs", again, "--address", head.url).stdout
    after = {row.number: row for row in StudyStore.open(head.results / "stopped").trials()}
    assert {number: after[number] for number in finished} == finished

    over = head.run("stop", "stopped", "--address", head.url)
    assert over.returncode == 2
    assert over.stderr == (
        f"error: JOB_OR_STUDY: must be a job that runs, but got {again}, which has succeeded. Nothing was changed.\n"
    )


def test_what_a_new_user_does_wrong_is_one_line(head):
    def error(*words: str, **environment: str) -> str:
        done = head.run(*words, **environment)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "asks for its cluster's token, but got another token." in error(
        "jobs", "--address", head.url, RAY_AUTH_TOKEN="x"
    )
    assert "asks for its token, but got another token." in error("jobs", "--address", head.gcs, RAY_AUTH_TOKEN="x")
    (port,) = free_ports(1)
    refused = error("jobs", "--address", f"http://127.0.0.1:{port}")
    assert f"must answer at http://127.0.0.1:{port}, but got '[Errno 111] Connection refused'." in refused
    assert "must be a job, or a study that was submitted to this cluster, but got 'nothing'" in error(
        "logs", "--follow", "nothing", "--address", head.url
    )
