"""optuna-dashboard on a study, started as its users do."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import pytest
from fakes import finish, make_report, make_study

from search.ablation import load_ablation
from search.commands import dashboard
from search.commands.dashboard import Pages, main
from search.run import _describe_dashboard
from search.storage.store import StudyStore


@pytest.fixture
def study(tmp_path):
    study = make_study(tmp_path, "cells", trials=10, epochs=3)
    study.store.write_study(study.store.study | {"space": study.experiment.to_json()})
    for number in range(3):
        study.propose()
        study.report(number, make_report(1, 0.1 * (number + 1)))
    finish(study, 0, "pruned", "at epoch 1")
    return study


def ask(url: str):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def trials_of(address: str) -> list:
    (summary,) = ask(f"{address}/api/studies")["study_summaries"]
    assert summary["study_name"] == "cells"
    return ask(f"{address}/api/studies/{summary['study_id']}?after=0")["trials"]


def test_the_command_serves_the_study_on_this_machine_only_until_ctrl_c(study, tmp_path):
    pytest.importorskip("optuna_dashboard")
    command = [sys.executable, "-m", "search.commands.dashboard", "--results", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(
            r"study 'cells': (http://127\.0\.0\.1:(\d+)) \(from another machine first: ssh -N -L (.+)\)", line
        )
        assert found, line + process.stderr.read()
        assert found[3].startswith(f"{found[2]}:127.0.0.1:{found[2]} ")
        assert [trial["state"] for trial in trials_of(found[1])][:1] == ["Pruned"]
        assert len(trials_of(found[1])) == 3
        with urllib.request.urlopen(f"{found[1]}/dashboard/", timeout=20) as page:
            assert b"<html" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_page_follows_a_study_that_runs(study):
    pytest.importorskip("optuna_dashboard")
    pages = Pages(StudyStore.open(study.store.folder))
    with dashboard._server(pages, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert len(trials_of(address)) == 3
        assert not pages.update(StudyStore.open(study.store.folder))
        study.propose()
        assert pages.update(StudyStore.open(study.store.folder))
        assert len(trials_of(address)) == 4
        server.shutdown()


def test_reading_goes_on_after_a_moment_without_the_disk(monkeypatch):
    monkeypatch.setattr(dashboard, "REFRESH_SECONDS", 0.01)
    seen = []

    class EnoughError(Exception):
        pass

    def read():
        seen.append(time.monotonic())
        if len(seen) == 1:
            raise OSError("away")
        raise EnoughError

    with pytest.raises(EnoughError):
        dashboard._follow(SimpleNamespace(update=lambda store: None), read)
    assert len(seen) == 2


def test_a_port_in_use_is_an_error_if_it_was_asked_for_and_else_another_is_taken(study, tmp_path, capsys, monkeypatch):
    pytest.importorskip("optuna_dashboard")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--results", str(tmp_path), "--port", str(port)]) == 2
        assert f"--port: must be free on this machine, but got {port}" in capsys.readouterr().err
        monkeypatch.setattr(dashboard, "PORT", port)
        with dashboard._server(lambda *_: [], None) as server:
            assert server.server_port != port


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    assert main([]) == 2
    assert "Run pip install 'cellseg-search[dashboard]'" in capsys.readouterr().err


def test_an_ablation_is_refused(study, tmp_path, capsys):
    pytest.importorskip("optuna_dashboard")
    ablation = load_ablation("spaces/reports/schedulers_anchors.yaml")
    study.store.write_study(study.store.study | {"space": ablation.to_json()})
    assert main(["--results", str(tmp_path)]) == 2
    assert "must be a search, but got an ablation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dashboard_url", "address", "expected"),
    [
        (
            "127.0.0.1:8265",
            None,
            "http://127.0.0.1:8265 (from another machine first: ssh -N -L 8265:127.0.0.1:8265 me)",
        ),
        (
            "127.0.0.1:9000",
            "auto",
            "http://127.0.0.1:9000 (from another machine first: ssh -N -L 9000:127.0.0.1:9000 me)",
        ),
        (
            "127.0.0.1:8265",
            "head:6379",
            "http://127.0.0.1:8265 (from another machine first: ssh -N -L 8265:127.0.0.1:8265 head)",
        ),
        ("10.0.0.7:8265", "head:6379", "http://10.0.0.7:8265"),
    ],
)
def test_the_line_of_rays_dashboard_has_the_way_from_another_machine(monkeypatch, dashboard_url, address, expected):
    monkeypatch.setattr("platform.node", lambda: "me")
    line = _describe_dashboard(dashboard_url, address)
    assert line == f"Ray dashboard: {expected}; it may ask for a token, which `ray get-auth-token` prints"
