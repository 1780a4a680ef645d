"""Nodes that trials cannot run on, on a real cluster: each is named before the first trial, all at once."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from fakes import make_report, make_study
from ray.cluster_utils import Cluster

from cellseg.errors import Problem, UserError
from search.cluster import node_facts
from search.cluster.node_facts import code_of, facts, marker_error
from search.cluster.node_watch import ARRIVAL_SECONDS, NodeWatch
from search.cluster.preflight import (
    FOLDER_LOW,
    GIB,
    NodeChecks,
    NodeReport,
    clock_error,
    own_facts,
    require_nodes,
    space_findings,
)
from search.cluster.shared_folder import PROOFS, require_shared_folder, shared_folder
from search.cluster.trainable import REPORT

ONE_CPU = {"cpu": 1, "gpu": 0}


def report_of(law: str, node: str, got: str = "none") -> NodeReport:
    return NodeReport(node, node, (Problem(f"node {node}", law, got),), (Problem(f"node {node}", "clock", got),))


def test_all_problems_of_all_nodes_are_in_one_error():
    reports = [report_of("A", "1"), report_of("A", "2"), report_of("B", "3"), NodeReport("4", "4")]
    with pytest.raises(UserError) as caught:
        require_nodes(reports)
    assert caught.value.problems == ("node 1 and 1 more like it: A, but got none.", "node 3: B, but got none.")


def test_warnings_stop_nothing():
    warning = NodeReport("1", "1", (), (Problem("node 1", "a clock", "a sundial"),))
    assert [str(line) for line in require_nodes([warning, NodeReport("2", "2")])] == [
        "node 1: a clock, but got a sundial."
    ]


@pytest.mark.parametrize(
    ("free", "problems", "warnings"), [(FOLDER_LOW, 0, 0), (FOLDER_LOW - 1, 0, 1), (GIB // 4, 1, 0)]
)
def test_little_space_is_warned_of_and_none_refused(free, problems, warnings):
    disks = {"/results": {"free": free, "total": 10**15}, "/tmp": {"free": 10**12, "total": 10**15}}
    found = space_findings({"disks": disks, "shm_bytes": 10**12}, Path("/results"))
    assert (len(found.problems), len(found.warnings)) == (problems, warnings)
    for line in (*found.problems, *found.warnings):
        assert "the folder of results /results must have 10 GiB free" in str(line)


def test_the_small_shared_memory_of_a_container_is_warned_of():
    found = space_findings({"disks": {}, "shm_bytes": 64 * 2**20}, Path("/results"))
    assert found.problems == ()
    assert "/dev/shm must have 1 GiB, but got 64 MiB. In a container, start it with --shm-size=8g" in str(
        found.warnings[0]
    )


@pytest.mark.parametrize(
    ("started", "ended", "error"),
    [
        (101, 129, None),
        (60, 88, "40 s behind or more"),
        (160, 188, "58 s ahead or more"),
        (96, 124, None),  # 5 s are not worth a word
        (110, 112, None),  # the driver may read an answer late
    ],
)
def test_a_clock_is_off_only_if_it_must_be(started, ended, error):
    assert clock_error(100, started, ended, 130) == error


def test_the_own_machine_is_checked_in_no_time(tmp_path):
    own_facts(tmp_path)
    start = time.perf_counter()
    space_findings(own_facts(tmp_path), tmp_path)
    assert time.perf_counter() - start < 0.5


def test_the_program_needs_nothing_but_the_standard_library(tmp_path):
    wanted = {"imports": ["cellseg"], "gpu": False, "folder": str(tmp_path), "node": None}
    program = Path(node_facts.__file__).read_text()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, json.dumps(wanted)], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.removeprefix(node_facts.MARK))
    assert found["import_error"] == "ModuleNotFoundError: No module named 'cellseg'"
    assert found["versions"]["torch"] is None
    assert found["code"]["cellseg"] is None


def test_source_that_differs_has_another_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "some_cells"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    former = code_of("some_cells")
    assert former == code_of("some_cells") is not None
    (package / "__init__.py").write_text("x = 2\n")
    assert code_of("some_cells") != former


def test_a_marker_may_come_late_but_not_never(tmp_path):
    marker = tmp_path / "nodes" / "driver"
    assert marker_error(marker, "token", seconds=0) == "no such folder"
    marker.parent.mkdir()
    assert marker_error(marker, "token", seconds=0) == "no such file"
    marker.write_text("of another search")
    assert marker_error(marker, "token", seconds=0) == "another file of that name"
    marker.write_text("token")
    assert marker_error(marker, "token", seconds=0) is None


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_the_node_cannot_write_is_told(tmp_path):
    (tmp_path / "driver").write_text("token")
    tmp_path.chmod(0o500)
    wanted = {"imports": [], "gpu": False, "folder": str(tmp_path), "node": "n", "marker": "driver", "token": "token"}
    assert facts(wanted)["folder_error"] == "'Permission denied' when it writes there"


class Answers:
    """Stands for :class:`NodeChecks`: what :meth:`look` returns next."""

    def __init__(self):
        self.next: list[NodeReport] = []

    def look(self) -> list[NodeReport]:
        found, self.next = self.next, []
        return found


class Excludes:
    """Stands for :class:`search.cluster.fleet.Fleet`: all trials run on one machine."""

    def __init__(self):
        self.place = "7"
        self.excluded: list[tuple[str, list[str]]] = []

    def place_of(self, number: int) -> str:
        return self.place

    def name_of(self, node: str) -> str:
        return f"host-{node}"

    def exclude(self, node: str, problems: list[str]) -> None:
        self.excluded.append((node, problems))


class Watched:
    """A study with a running trial and a watch whose clock the test sets."""

    def __init__(self, folder: Path):
        self.now, self.said, self.answers = 0.0, [], Answers()
        self.study = make_study(folder)
        self.number = self.study.propose().number
        self.fleet = Excludes()
        self.watch = NodeWatch(self.study, self.fleet, self.answers, self.said.append, clock=lambda: self.now)

    def report(self) -> None:
        trial = type("Trial", (), {"config": {"number": self.number}})
        result = {REPORT: json.dumps(make_report(1, 0.5))}
        self.watch.on_trial_result(1, [], trial, result)

    def at(self, seconds: float) -> None:
        self.now = seconds
        self.watch.on_step_end()


@pytest.fixture
def watched(tmp_path) -> Watched:
    return Watched(tmp_path)


def test_a_node_whose_checkpoint_does_not_arrive_is_excluded_and_so_is_the_next(watched):
    for place in ("7", "8"):
        watched.fleet.place = place
        watched.report()
        watched.at(watched.now + ARRIVAL_SECONDS)
        assert place not in dict(watched.fleet.excluded)
        watched.at(watched.now + 0.1)
    folder = watched.study.store.checkpoint_folder(watched.number) / "last"
    (node, [problem]), (other, _) = watched.fleet.excluded
    assert (node, other) == ("7", "8")
    assert re.match(rf"node host-7: .* {folder} .*no checkpoint .* Put --results on a disk", problem)


def test_a_checkpoint_that_arrives_in_time_is_asked_for_once(watched):
    watched.report()
    watched.at(1)
    folder = watched.study.store.checkpoint_folder(watched.number) / "last"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    watched.at(2)
    (folder / "checkpoint.json").unlink()
    watched.report()
    watched.at(1000)


def test_a_trial_that_has_ended_keeps_no_state(watched):
    watched.report()
    watched.study.end(watched.number, "epochs")
    watched.at(1000)


def test_a_late_node_is_warned_of_or_excluded(watched):
    watched.answers.next = [NodeReport("1", "1", (), (Problem("node 1", "a clock", "a sundial"),))]
    watched.at(100)
    assert watched.said == ["warning: node 1: a clock, but got a sundial."]
    watched.answers.next = [report_of("A", "2")]
    watched.at(200)
    assert watched.fleet.excluded == [("2", ["node 2: A, but got none."])]


BROKEN = """
import sys

class Nowhere:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {"cellseg", "search"}:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Nowhere)
"""
OLD_TORCH = "import importlib.metadata as m\nold = m.version\nm.version = lambda n: '1.0' if n == 'torch' else old(n)\n"


class Nodes:
    """A cluster: a head that is in order, a node without the package, one with another torch, one that joined late."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.name_of = {}
        self.add("bare", BROKEN)
        self.add("old", OLD_TORCH)
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.results = folder / "results"
        self.results.mkdir()
        self.seconds = 0.0

    def add(self, name: str, start: str) -> None:
        """Add a node whose Python runs ``start`` first. By itself, Ray lets it find the packages of the test."""
        (self.folder / name).mkdir()
        (self.folder / name / "sitecustomize.py").write_text(start)
        path = os.pathsep.join([str(self.folder / name), os.environ.get("PYTHONPATH", "")])
        node = self.cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": path})
        self.name_of[node.node_id] = name


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    if ray.is_initialized():
        pytest.skip("another Ray is in use")
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture
def no_imports(monkeypatch):
    """Importing torch takes a node's process many seconds."""
    monkeypatch.setattr("search.cluster.preflight.IMPORTS", [])


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_unfit_nodes_are_found_and_named(nodes):
    with shared_folder(nodes.results) as shared:
        checks = NodeChecks(ONE_CPU, shared)
        reports = {nodes.name_of.get(report.node_id, "head"): report for report in checks.wait()}
        assert set(reports) == {"head", "bare", "old"}
        assert reports["head"].problems == ()
        assert "1 CPU, 0 GPUs, torch " in reports["head"].summary
        (bare,) = reports["bare"].problems
        assert str(bare).startswith(f"node {socket.gethostname()} (")
        assert "package cellseg-search must be importable, but got 'ModuleNotFoundError: No module" in str(bare)
        assert "Install the driver's version" in str(bare)
        (old,) = reports["old"].problems
        assert (
            f"must have torch {own_facts(nodes.results)['versions']['torch']} as the driver does, but got 1.0"
            in str(old)
        )
        assert checks.look() == [], "each node is checked once"
        # One that joins later is found by the next looks.
        nodes.add("late", BROKEN)
        found = []
        deadline = time.monotonic() + 120
        while not found and time.monotonic() < deadline:
            found = checks.look()
            time.sleep(0.1)
        (late,) = found
        assert "must be importable" in str(late.problems[0])
        assert nodes.name_of[late.node_id] == "late"
    assert not (nodes.results / PROOFS).exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_does_not_answer_in_time_is_named(nodes):
    with shared_folder(nodes.results) as shared:
        reports = NodeChecks(ONE_CPU, shared, seconds=0.01).wait()
    assert len(reports) >= 3
    for report in reports:
        assert re.search(r"node .*: must tell its versions and disks, but got nothing", str(report.problems[0]))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_that_a_node_does_not_see_is_found(nodes, no_imports):
    with shared_folder(nodes.results) as shared:
        (nodes.results / shared.marker).unlink()  # what a node sees whose disk is its own
        reports = NodeChecks(ONE_CPU, shared).wait()
        assert len(reports) >= 3
        for report in reports:
            text = "\n".join(map(str, report.problems))
            assert f"must see the folder of results {nodes.results} as the driver does, but got no such file" in text
            assert "Put --results on a disk that all machines mount under the same path (NFS" in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_whose_file_does_not_arrive_is_found(nodes, no_imports, monkeypatch):
    monkeypatch.setattr("search.cluster.shared_folder.SharedFolder.error_of", lambda self, node: "no such file")
    with shared_folder(nodes.results) as shared:
        reports = NodeChecks(ONE_CPU, shared).wait()
    assert all("as the driver does, but got no such file" in str(report.problems[-1]) for report in reports)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_process_of_a_trial_looks_for_the_drivers_file(nodes):
    def look(folder):
        try:
            require_shared_folder(folder)
        except UserError as error:
            return str(error)
        return None

    task = ray.remote(num_cpus=0)(look)
    head = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    ask = task.options(scheduling_strategy=head).remote
    assert ray.get(ask(nodes.results)) is None, "nobody asks for it"
    with shared_folder(nodes.results) as shared:
        assert ray.get(ask(nodes.results)) is None
        (nodes.results / shared.marker).unlink()
        assert "must see the folder of results" in ray.get(ask(nodes.results))
