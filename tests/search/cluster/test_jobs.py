"""Commands for submitted studies, against a stand-in of the dashboard that speaks Ray's Jobs API."""

import io
import json
import re
import shlex
import socket
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from spacefiles import TINY_SPACE

from cellseg.cli import spelled
from cellseg.errors import UserError
from search.__main__ import main
from search.cluster import dashboard, jobs
from search.cluster.dashboard import find_dashboard
from search.cluster.job_record import changed
from search.cluster.jobs import job_id, python_of
from search.cluster.token import use_token
from tests.ray_authentication import set_mode

TOKEN = "the right one"
START = 1_700_000_000_000


class FakeDashboard:
    """Answers as the dashboard of Ray 2.60 does, and remembers what it was sent."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.forbidden = "Forbidden: Invalid authentication token"
        self.shown: list[str | None] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.submitted: list[dict[str, Any]] = []
        self.no_agent = 0
        """Submissions that are refused before one is taken."""
        self.url = ""

    def add(self, name: str, study: str = "cells", status: str = "RUNNING", **more: Any) -> None:
        metadata = {"study": study, "results": "/r", "progress": "1 of 9 trials, 2 running", "user": "ann@laptop"}
        metadata["submitted_as"] = "cellseg-search submit x.yaml"
        self.jobs[name] = {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": status,
            "entrypoint": "python -m search run",
            "message": "Job is currently running.",
            "start_time": START + 1000 * len(self.jobs),
            "end_time": None if status in ("RUNNING", "PENDING") else START + 3_723_000,
            "metadata": metadata,
            **more,
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        match method, path.strip("/").split("/"):
            case "GET", ["api", "version"]:
                return 200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}
            case "GET", ["nodes?view=summary"]:
                return 200, {"data": {"summary": [{"raylet": {"nodeId": "n1", "isHeadNode": True}}]}}
            case "GET", ["nodes", "n1"]:
                return 200, {
                    "data": {"detail": {"cmdline": ["raylet", "--python_worker_command=/env/bin/python x.py"]}}
                }
            case "GET", ["api", "jobs"]:
                return 200, list(self.jobs.values())
            case "POST", ["api", "jobs"]:
                if self.no_agent > 0:
                    self.no_agent -= 1
                    return 500, "No available agent to submit job, please try again later."
                order = json.loads(body)
                self.submitted.append(order)
                self.add(order["submission_id"], status="PENDING", metadata=order["metadata"])
                return 200, {"submission_id": order["submission_id"], "job_id": None}
            case "GET", ["api", "jobs", name]:
                return (200, self.jobs[name]) if name in self.jobs else (404, "no such job")
            case "GET", ["api", "jobs", name, "logs"]:
                return 200, {"logs": f"first of {name}\nsecond\nthird\n"}
            case "POST", ["api", "jobs", name, "stop"]:
                self.jobs[name]["status"] = "STOPPED"
                return 200, {"stopped": True}
            case "GET", ["api", "packages", _, name]:
                return (200, "") if name in self.packages else (404, "")
            case "PUT", ["api", "packages", _, name]:
                self.packages[name] = body
                return 200, ""
        return 404, f"no {path}"


@contextmanager
def serving(fake: Any) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            shown = self.headers.get("Authorization")
            fake.shown.append(shown)
            if fake.token is not None and shown != f"Bearer {fake.token}":
                status = 401 if shown is None else 403
                content = "Unauthorized: Missing authentication token" if shown is None else fake.forbidden
            else:
                status, content = fake.answer(self.command, self.path, body)
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A home without a token, and none in the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    # Ray's client would prefer it to the address that it is given.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


@pytest.fixture
def fake() -> Iterator[FakeDashboard]:
    fake = FakeDashboard()
    with serving(fake) as fake.url:
        yield fake


@pytest.fixture
def space(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my cells.yaml"
    path.write_text(TINY_SPACE)
    return path


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


# The dashboard


@pytest.fixture(autouse=True)
def _no_token_for_other_tests(monkeypatch):
    """What these commands join is made up; the Ray of other tests, in this process, has no token."""
    monkeypatch.setattr(dashboard, "use_token", lambda: None)


@pytest.fixture
def token_in_use(monkeypatch):
    """This process has joined another cluster, to which it shows a token."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        patch.setenv("RAY_AUTH_MODE", "token")
        use_token()
        yield
    set_mode(None)


@pytest.mark.slow  # alone: Ray in this process shows a token from here on
def test_an_open_dashboard_is_never_shown_a_token(fake, token_in_use, capsys):
    assert main(["jobs", "--address", fake.url]) == 0
    assert capsys.readouterr().out == "No study was submitted to this cluster.\n"
    assert set(fake.shown) == {None, ""}


def test_every_request_to_a_dashboard_that_asks_for_a_token_carries_it(fake, monkeypatch):
    fake.token = TOKEN
    fake.add("cells-1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert main(["stop", "cells-1", "--address", f"{fake.url}/"]) == 0
    assert fake.shown[0] is None
    assert set(fake.shown[1:]) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(("mine", "got"), [(None, "no token on this machine"), ("wrong", "another token")])
def test_a_token_that_is_missing_or_wrong_is_one_line(fake, monkeypatch, capsys, mine, got):
    fake.token = TOKEN
    if mine is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", mine)
    (line,) = fails(capsys, "jobs", "--address", fake.url)
    law = f"error: --address: the dashboard at {fake.url} asks for its cluster's token"
    assert line.startswith(f"{law}, but got {got}. Copy ~/.ray/auth_token")


def test_an_address_at_which_nobody_answers_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (line,) = fails(capsys, "jobs", "--address", f"http://127.0.0.1:{port}")
    law = f"error: --address: the dashboard of a Ray cluster must answer at http://127.0.0.1:{port}"
    assert line.startswith(f"{law}, but got '[Errno 111] Connection refused'. Check host and port.")
    assert "ssh -N -L 8265:127.0.0.1:8265 HEAD" in line


def test_another_server_is_told_from_a_dashboard(capsys):
    class Other(FakeDashboard):
        def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
            return 200, "<html>"

    with serving(Other()) as url:
        (line,) = fails(capsys, "jobs", "--address", url)
    assert f"must answer at {url}, but got 'Expecting value" in line

    class Minimal(FakeDashboard):
        def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
            return 404, ""

    with serving(Minimal()) as url:
        (line,) = fails(capsys, "jobs", "--address", url)
    assert "but got something else (status 404). " in line
    assert "ray[default]" in line


def test_a_dashboard_without_its_scheme_is_understood(fake, monkeypatch):
    fake.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert find_dashboard(fake.url.removeprefix("http://")).url == fake.url


def test_another_server_that_asks_for_a_password_is_not_shown_the_token(capsys, monkeypatch):
    class Locked(FakeDashboard):
        def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
            return 401, "Who are you?"

    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    other = Locked()
    with serving(other) as url:
        (line,) = fails(capsys, "jobs", "--address", url)
    assert "but got something else (status 401)." in line
    assert other.shown == [None]


def test_a_server_that_does_not_speak_http_is_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0\r\n"), daemon=True).start()
        with pytest.raises(UserError, match="but got something that does not speak HTTP"):
            find_dashboard(f"http://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "head", "::1:8265"])
def test_other_kinds_of_addresses_are_refused(capsys, address):
    (line,) = fails(capsys, "jobs", "--address", address)
    assert line.startswith(
        "error: --address: must be http://HOST:PORT of the dashboard, HOST:PORT of the head, or auto"
    )


class FakeGcs:
    told: bytes | None = b"127.0.0.1:8265"

    def __init__(self, address: str):
        pass

    def internal_kv_get(self, *_: Any, **__: Any) -> bytes | None:
        return self.told


@pytest.mark.parametrize(
    ("told", "head", "said"),
    [
        (
            b"127.0.0.1:8265",
            "192.0.2.77:6379",
            "but got one that listens on http://127.0.0.1:8265 of the head only. Run",
        ),
        (None, "127.0.0.1:6379", "must have a dashboard, whose port serves the Jobs API, but got none. Install ray"),
    ],
)
def test_a_dashboard_that_is_not_there_or_not_for_this_machine_is_told(monkeypatch, told, head, said):
    """The same address on this machine may be that of another cluster."""
    monkeypatch.setattr(dashboard, "GcsClient", FakeGcs)
    monkeypatch.setattr(dashboard, "asks_for_token", lambda address: False)
    monkeypatch.setattr(dashboard, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(FakeGcs, "told", told)
    with pytest.raises(UserError, match=re.escape(said)):
        find_dashboard(head)


def test_the_head_tells_where_its_dashboard_is(monkeypatch, fake):
    monkeypatch.setattr(dashboard, "GcsClient", FakeGcs)
    monkeypatch.setattr(dashboard, "asks_for_token", lambda address: False)
    monkeypatch.setattr(FakeGcs, "told", fake.url.removeprefix("http://").encode())
    assert find_dashboard("127.0.0.1:6379").url == fake.url


# submit


def test_submit_sends_the_space_and_the_options_of_run(fake, space, capsys):
    words = ["my cells.yaml", "--results", "/shared/my results", "--data", "/data/a b", "--trials", "7", "--set"]
    words += ["keep=2", "--priority", "2"]
    assert main(["submit", *words, "--address", fake.url]) == 0
    (order,) = fake.submitted
    line = shlex.split(order["entrypoint"])
    assert line[:6] == ["exec", "/env/bin/python", "-m", "search", "run", "my cells.yaml"]
    assert line[6:] == [
        "--study=my cells",
        "--results=/shared/my results",
        "--address=auto",
        "--data=/data/a b",
        "--trials=7",
        "--priority=2.0",
        "--set=keep=2",
    ]
    assert order["metadata"] | {"user": ""} == {
        "job_name": "my cells",
        "study": "my cells",
        "results": "/shared/my results",
        "progress": "not started",
        "user": "",
        "submitted_as": f"cellseg-search submit {shlex.join([*words, '--address', fake.url])}",
    }
    environment = order["runtime_env"]["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > 10
    assert environment["CELLSEG_SUBMITTED_AS"] == order["metadata"]["submitted_as"]
    assert "py_modules" not in order["runtime_env"]
    (package,) = fake.packages.values()
    assert zipfile.ZipFile(io.BytesIO(package)).namelist() == ["my cells.yaml"]
    name = order["submission_id"]
    assert re.fullmatch("my-cells-[0-9a-f]{6}", name)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"Submitted study my cells as {name}. It runs on the cluster; you may close this terminal."
    assert out[1] == f"Follow it:   cellseg-search logs --follow {name} --address {fake.url}"


def test_the_words_that_are_sent_mean_to_run_what_they_meant_to_submit(fake, space):
    from search.run import _parser
    from search.study.options import study_words

    words = ["--data=-d", "--trials=7", "--epochs=3", "--max-slots=2", "--priority=0.5", "--rows=a,b", "--set=x=-1"]
    assert main(["submit", "my cells.yaml", "--results=/r", "--address", fake.url, *words[1:5]]) == 0
    line = shlex.split(fake.submitted[0]["entrypoint"])
    parsed = _parser().parse_args(line[5:])
    assert (parsed.trials, parsed.epochs, parsed.max_slots, parsed.priority) == (7, 3, 2, 0.5)
    assert (parsed.study, str(parsed.results), parsed.address) == ("my cells", "/r", "auto")
    assert study_words(_parser().parse_args(["x.yaml", *words])) == words


def test_a_user_without_a_name_can_submit(fake, space, monkeypatch):
    def getuser() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(jobs.getpass, "getuser", getuser)
    assert main(["submit", "my cells.yaml", "--results", "/r", "--address", fake.url]) == 0
    assert re.match(r"\d+@", fake.submitted[0]["metadata"]["user"])


def test_code_is_sent_without_what_is_no_code(fake, space):
    assert main(["submit", "my cells.yaml", "--results", "/r", "--send-code", "--address", fake.url]) == 0
    names = [name for package in fake.packages.values() for name in zipfile.ZipFile(io.BytesIO(package)).namelist()]
    assert {"my cells.yaml", "cellseg/cli.py", "search/run.py", "search/cluster/jobs.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or ".git" in name or name.endswith(".pyc")]
    assert len(fake.submitted[0]["runtime_env"]["py_modules"]) == 2


def test_submit_refuses_everything_that_means_something_here_only(fake, space, capsys):
    space.write_text(TINY_SPACE.replace("model.weights: none", "model.weights: {choices: [none, mine.pt, /w.pt]}"))
    lines = fails(capsys, "submit", "my cells.yaml", "--results", "results", "--data", "cells", "--address", fake.url)
    relative = "must be an absolute path on the cluster, but got '{}', which is relative to a folder of this machine."
    assert [line.partition(". ")[0] + "." for line in lines] == [
        "error: --results: " + relative.format("results"),
        "error: --data: " + relative.format("cells"),
        "error: my cells.yaml: model.weights: " + relative.format("mine.pt"),
    ]
    generated = re.sub(r"data:\n.*\n", "data: {root: ../cells}\n", TINY_SPACE)
    space.write_text(generated)
    (line,) = fails(capsys, "submit", "my cells.yaml", "--results", "/r", "--address", fake.url)
    assert line.startswith("error: my cells.yaml: data.root: " + relative.format("../cells"))
    space.write_text(generated.replace("data: {root: ../cells}\n", ""))
    (line,) = fails(capsys, "submit", "my cells.yaml", "--results", "/r", "--address", fake.url)
    assert line.startswith("error: --data: a data set must be named, but got neither")
    assert not fake.shown, "the cluster is not asked before all is right here"


def test_two_jobs_never_work_on_one_study(fake, space, capsys):
    fake.add("cells-1", study="my cells")
    words = ["submit", "my cells.yaml", "--address", fake.url, "--results"]
    (line,) = fails(capsys, *words, "/r/")
    assert "one job at a time must work on a study, but got 'my cells', on which cells-1 works." in line
    assert main([*words, "/elsewhere"]) == 0
    fake.jobs["cells-1"]["status"] = "STOPPED"
    assert main([*words, "/r"]) == 0


def test_a_head_that_has_just_started_is_waited_for(fake, space, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    fake.no_agent = 2
    words = ["submit", "my cells.yaml", "--results", "/r", "--address", fake.url]
    assert main(words) == 0
    assert len(fake.submitted) == 1
    capsys.readouterr()
    fake.no_agent = 10**6
    fake.jobs.clear()
    monkeypatch.setattr(jobs, "AGENT_SECONDS", 0.1)
    (line,) = fails(capsys, *words)
    assert "must be able to start jobs, but got no agent of the dashboard there." in line
    assert "--dashboard-agent-listen-port=PORT" in line


# jobs, logs, stop


def test_jobs_are_listed_latest_first_and_only_ours(fake, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    fake.add("cells-1", status="SUCCEEDED")
    fake.add("other", metadata={"job_name": "other"})
    fake.add("broken-1", study="broken", status="FAILED", message="exit code 2, logs:\nerror: --data: no such folder\n")
    fake.add("nuclei-2", study="nuclei [/x]")
    assert main(["jobs", "--address", fake.url]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["job", "study", "state", "progress", "by", "submitted", "for"]
    assert rows[0].startswith("nuclei-2  nuclei [/x]  running    1 of 9 trials, 2 running       ann@laptop  2023-11-1")
    assert rows[1].startswith("broken-1  broken       failed     error: --data: no such folder  ann@laptop  2023-11-1")
    assert rows[2].startswith("cells-1   cells        succeeded  1 of 9 trials, 2 running       ann@laptop  2023-11-1")
    assert rows[2].rstrip().endswith("1:02:03")
    assert len(rows) == 3


def test_a_study_names_the_job_that_works_on_it(fake, capsys):
    fake.add("cells-1", status="STOPPED")
    fake.add("cells-2")
    fake.add("cells-3", status="FAILED", message="the reason\nin lines")
    assert main(["logs", "cells", "--address", fake.url, "--lines", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "second",
        "third",
        "cells-2 of study cells: running, 1 of 9 trials, 2 running",
    ]
    del fake.jobs["cells-2"]
    assert main(["logs", "cells", "--address", fake.url, "--lines", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "cells-3 of study cells: failed, 1 of 9 trials, 2 running",
        "the reason",
        "in lines",
    ]
    fake.add("cells-4")
    fake.add("cells-5")
    (line,) = fails(capsys, "stop", "cells", "--address", fake.url)
    assert line == (
        "error: JOB_OR_STUDY: must name one job, but got study 'cells' of cells-5 (/r), cells-4 (/r). Name the job."
    )


def test_an_unknown_job_and_one_that_is_over_are_told(fake, capsys):
    fake.add("cells-1", status="SUCCEEDED")
    (line,) = fails(capsys, "stop", "cels", "--address", fake.url)
    assert "but got 'cels'; studies there: 'cells'. `cellseg-search jobs` lists them." in line
    (line,) = fails(capsys, "stop", "cells-1", "--address", fake.url)
    assert line == (
        "error: JOB_OR_STUDY: must be a job that runs, but got cells-1, which has succeeded. Nothing was changed."
    )


def test_stop_says_how_to_continue(fake, capsys):
    fake.add("cells-1")
    assert main(["stop", "cells", "--address", fake.url]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Stopping cells-1 ...",
        "Stopped study cells (cells-1): 1 of 9 trials, 2 running",
        "Continue it: cellseg-search submit x.yaml",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--trial: a trial or a submitted study must be named"),
        (["cells"], "--address: the cluster of a submitted study must be given, but got 'cells' alone"),
        (["cells", "--address", "auto", "--trial", "3"], "--trial: must come without a job, but got 'cells' too"),
        (["--trial", "3", "--follow"], "--trial: must come without --follow and --address"),
    ],
)
def test_logs_shows_either_a_trial_or_a_job(capsys, words, said):
    (line,) = fails(capsys, "logs", *words)
    assert line.startswith(f"error: {said}")


def test_a_stopped_search_names_the_command_that_submitted_it(monkeypatch, capsys):
    from argparse import Namespace

    from search.run import _say_stopped

    with spelled({"search.run": "cellseg-search run"}):
        _say_stopped(Namespace(argv=["a b.yaml"]))
        monkeypatch.setenv("CELLSEG_SUBMITTED_AS", "cellseg-search submit c.yaml")
        _say_stopped(Namespace(argv=["a b.yaml"]))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "Stopped. cellseg-search run 'a b.yaml' continues where it was."
    assert second == "Stopped. cellseg-search submit c.yaml continues where it was."


def test_a_job_is_called_like_its_study_as_far_as_a_url_takes_it():
    assert re.fullmatch(r"my-cells-2-[0-9a-f]{6}", job_id("my cells +2"))
    assert re.fullmatch(r"study-[0-9a-f]{6}", job_id("細胞"))
    assert job_id("a") != job_id("a")


def test_the_python_of_a_raylet_is_read_from_its_command_line():
    assert (
        python_of(["raylet", "--python_worker_command='/my env/bin/python3' -u x.py", "--x"]) == "/my env/bin/python3"
    )
    assert python_of([]) == "python"


# The record of a job, which the driver changes


def test_the_progress_goes_into_the_metadata_and_the_message():
    record = {"status": "RUNNING", "metadata": {"job_name": "x", "study": "cells"}, "message": "old", "start_time": 1}
    content = json.loads(changed(json.dumps(record).encode(), "cells", "/r", "2 of 3"))
    assert content == {
        "status": "RUNNING",
        "metadata": {"job_name": "x", "study": "cells", "results": "/r", "progress": "2 of 3"},
        "message": "cells: 2 of 3",
        "start_time": 1,
    }
    assert json.loads(changed(b'{"status": "RUNNING", "metadata": null}', "a", "/r", "1"))["metadata"] == {
        "study": "a",
        "results": "/r",
        "progress": "1",
    }, "a job that another program submitted"


@pytest.mark.parametrize("record", [None, b"", b"no JSON", b"[]", b'{"status": "STOPPED", "metadata": {}}', b"{}"])
def test_a_record_of_an_ended_job_or_of_another_form_is_left_alone(record):
    assert changed(record, "cells", "/r", "2 of 3") is None
