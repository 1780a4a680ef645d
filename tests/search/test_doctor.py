"""The doctor finds what is wrong, names the remedy, and says with its status whether a search could run."""

import fcntl
import shutil

import pytest

import search.diagnosis.local
import search.diagnosis.nodes
from cellseg.cli import EXIT_OK, EXIT_USER_ERROR
from cellseg.data.synthetic import generate_dataset
from cellseg.errors import Problem
from search.cluster.preflight import GIB, NodeReport
from search.commands.doctor import main
from search.diagnosis.local import data, installation, machine, results
from search.diagnosis.nodes import cluster


def by_what(findings) -> dict:
    """The findings by what they are about; of several, the list."""
    found: dict = {}
    for finding in findings:
        found.setdefault(finding.what, []).append(finding)
    return {what: all_[0] if len(all_) == 1 else all_ for what, all_ in found.items()}


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_in_order_is_ok(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == EXIT_OK
    text = capsys.readouterr().out
    assert text.rstrip().splitlines()[-1].startswith("problems: 0, warnings: ")
    assert all(
        f"{what} " in text for what in ("python", "packages", "pycocotools", "torch", "token", "results", "locks")
    )
    assert not (tmp_path / "results").exists(), "it looks, and leaves nothing"


def test_something_wrong_is_status_2_with_its_remedy(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--results", str(tmp_path / "file" / "results")]) == EXIT_USER_ERROR
    text = capsys.readouterr().out
    assert "problem" in text
    assert "Choose another --results DIR." in text
    assert "problems: 1," in text


def test_packages_that_are_missing_or_too_old_are_all_named(monkeypatch):
    versions = {"torch": "1.0", "optuna": None}
    former = search.diagnosis.local._version
    monkeypatch.setattr(search.diagnosis.local, "_version", lambda name: versions.get(name, former(name)))
    packages = by_what(installation())["packages"]
    assert packages.level == "problem"
    assert "torch>=2.8 (got 1.0)" in packages.detail
    assert "(got nothing)" in packages.detail
    assert packages.remedy


def test_versions_other_than_the_tested_are_told_and_fine(monkeypatch):
    monkeypatch.setattr(search.diagnosis.local, "tested_versions", lambda: {"rich": "13.9"})
    packages = by_what(installation())["packages"]
    assert packages.level == "ok"
    assert "others than the tested: rich " in packages.detail
    assert packages.detail.endswith(" (13.9)")


def test_a_token_that_others_can_read_is_a_warning(tmp_path):
    assert by_what(machine())["token"].detail.startswith("none yet")
    file = tmp_path / "home" / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    file.write_text("secret")
    file.chmod(0o644)
    token = by_what(machine())["token"]
    assert (token.level, token.remedy[:9]) == ("warning", "Run `chmo")
    file.chmod(0o600)
    assert by_what(machine())["token"].level == "ok"


@pytest.mark.parametrize("lock", [lambda *_: None, lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented"))])
def test_locks_without_effect_are_a_warning(tmp_path, monkeypatch, lock):
    assert by_what(results(tmp_path))["locks"].level == "ok"
    monkeypatch.setattr(fcntl, "flock", lock)
    assert by_what(results(tmp_path))["locks"].level == "warning"


def test_a_full_disk_is_a_problem(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=GIB // 16))
    disk = by_what(results(tmp_path))["disk"]
    assert [finding.level for finding in disk][:1] == ["problem"]
    assert f"the folder of results {tmp_path} must have 10 GiB free, but got 0.1 GiB" in disk[0].detail


def test_data_are_checked_in_short(tmp_path):
    generate_dataset(tmp_path / "cells", train=3, test=1, seed=0, size=64)
    found = by_what(data(tmp_path / "cells"))["data"]
    assert (found.level, "errors: 0" in found.detail) == ("ok", True)
    next((tmp_path / "cells" / "train").glob("*/image.tif")).write_bytes(b"no picture")
    broken = by_what(data(tmp_path / "cells"))["data"]
    assert [finding.level for finding in broken] == ["problem", "problem"]
    assert "cellseg.data.check" in broken[0].remedy
    assert by_what(data(tmp_path / "nothing"))["data"].level == "problem"


def test_a_cluster_that_does_not_answer_is_a_problem(tmp_path):
    found = by_what(cluster("127.0.0.1:1", tmp_path / "results"))["cluster"]
    assert found.level == "problem"
    assert "a Ray cluster must answer at '127.0.0.1:1'" in found.detail


class Joined:
    """Stands for a cluster that was joined."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return "127.0.0.1:8265"

    def __exit__(self, *_):
        return None


def test_every_node_has_its_rows(tmp_path, monkeypatch):
    bad = Problem("node 2", "package cellseg-search must be importable", "nothing", "Install it.")
    clock = Problem("node 1", "its clock must agree", "60 s more", "Use NTP.")
    reports = [NodeReport("1", "1", (), (clock,), "8 CPUs"), NodeReport("2", "2", (bad,))]
    nodes = search.diagnosis.nodes
    monkeypatch.setattr(nodes, "asks_for_token", lambda head: False)
    monkeypatch.setattr(nodes, "ray_cluster", Joined)
    monkeypatch.setattr(nodes, "shared_folder", Joined)
    monkeypatch.setattr(nodes, "NodeChecks", lambda *_: type("Checks", (), {"wait": lambda self: reports})())
    found = by_what(cluster("head:6379", tmp_path / "results"))
    assert found["cluster"].level == "ok"
    assert (found["cluster token"].level, "RAY_AUTH_MODE=token" in found["cluster token"].remedy) == ("warning", True)
    assert [finding.level for finding in found["node 1"]] == ["warning", "ok"]
    assert (found["node 2"].level, found["node 2"].remedy) == ("problem", "Install it.")
    assert not (tmp_path / "results").exists()


def test_an_address_that_is_wrong_does_not_hide_the_rest(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--address", "ray://head:10001"]) == EXIT_USER_ERROR
    text = capsys.readouterr().out
    assert "Ray Client" in text
    assert "locks" in text
