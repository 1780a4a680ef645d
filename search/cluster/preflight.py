"""The check of a cluster's nodes before a trial runs there: all problems of all nodes at once.

Every node runs the program :mod:`search.cluster.node_facts` in a process of its own, so that a package that is missing,
broken or hangs is a fact like others. What it finds is compared with the driver's own facts.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cellseg.errors import Problem, raise_all
from cellseg.names import counted
from search.cluster import node_facts
from search.cluster.shared_folder import SharedFolder, unshared
from search.cluster.slots import Node, TrialResources, complete, fitting, node_name
from search.cluster.tune_parts import first_line

NODE_SECONDS = 180.0
"""A node must have answered within this time. Importing torch from a busy network disk may take a minute."""
IMPORTS = ["cellseg", "search.cluster.trainable", "cellseg.training.fit"]
"""Modules that a trial's process needs: those of this package, and with them torch."""
GIB = 2**30
FOLDER_LEAST, FOLDER_LOW = GIB // 2, 10 * GIB
"""Free space in the folder of results: less is refused, or warned of. A checkpoint of a large model is 1 GiB."""
TEMP_LEAST, TEMP_LOW = GIB // 8, 2 * GIB
SHM_LOW = GIB
"""Size of /dev/shm. Loader processes pass images through it, and Ray keeps the data there."""
CLOCK_SECONDS = 5.0


@dataclass(frozen=True)
class NodeReport:
    """What is wrong with a node. ``summary`` says in a line what it has."""

    node_id: str
    name: str
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    summary: str = ""


class NodeChecks:
    """Checks every node that a trial fits on, once.

    :meth:`wait` checks those that are there, :meth:`look` those that join later.

    Args:
        resources: what a trial occupies, as the space says; None: it fits everywhere and takes a GPU if one is there.
        shared: the folder of results, which every node must see; without a token, a folder that each has of its own.
    """

    def __init__(self, resources: TrialResources | None, shared: SharedFolder, seconds: float = NODE_SECONDS):
        self._resources = resources
        self._shared = shared
        self._seconds = seconds
        self._asked: dict[str, _Question] = {}  # those that have not answered
        self._seen: set[str] = set()
        self._here = own_facts(shared.folder)
        self._task = _facts_task()

    def wait(self) -> list[NodeReport]:
        """Check the nodes that are there now; waits for their answers."""
        self._ask()
        reports = []
        while self._asked:
            refs = [question.ref for question in self._asked.values()]
            ray.wait(refs, timeout=min(1.0, self._seconds))
            reports += self._answers()
        return reports

    def look(self) -> list[NodeReport]:
        """Ask nodes that joined, and return the reports of those that answered since; never waits."""
        self._ask()
        return self._answers()

    def _ask(self) -> None:
        for node in ray.nodes():
            if node["Alive"] and node["NodeID"] not in self._seen and self._takes_trials(node):
                self._seen.add(node["NodeID"])
                self._asked[node["NodeID"]] = self._question(node)

    def _takes_trials(self, node: Node) -> bool:
        return self._resources is None or bool(fitting([node], complete(self._resources, [node])))

    def _takes_gpus(self, node: Node) -> bool:
        return node["Resources"].get("GPU", 0) > 0 if self._resources is None else (self._resources["gpu"] or 0) > 0

    def _question(self, node: Node) -> "_Question":
        wanted = {
            "imports": IMPORTS,
            "gpu": self._takes_gpus(node),
            "folder": str(self._shared.folder),
            "marker": self._shared.marker,
            "node": self._shared.file_of(node["NodeID"]) if self._shared.token else None,
            "token": self._shared.token,
        }
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = self._task.options(scheduling_strategy=where)
        ref = task.remote(Path(node_facts.__file__).read_text(encoding="utf-8"), json.dumps(wanted), self._seconds)
        return _Question(ref, node_name(node), node["Resources"], time.time(), time.monotonic() + self._seconds)

    def _answers(self) -> list[NodeReport]:
        if not self._asked:
            return []
        by_ref = {question.ref: node_id for node_id, question in self._asked.items()}
        ready, _ = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
        now, reports = time.time(), []
        for ref in ready:
            node_id = by_ref[ref]
            reports.append(self._report(node_id, self._asked.pop(node_id), now))
        for node_id, question in list(self._asked.items()):
            if time.monotonic() > question.deadline:
                ray.cancel(question.ref, force=True)
                del self._asked[node_id]
                problem = _no_answer(f"nothing for {self._seconds:g} s")
                reports.append(NodeReport(node_id, question.name, (_at(question.name, problem),)))
        return reports

    def _report(self, node_id: str, question: "_Question", now: float) -> NodeReport:
        name = question.name
        try:
            answer = ray.get(question.ref)
        except ray.exceptions.RayError as error:
            if not any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes()):
                return NodeReport(node_id, name)  # it has left: no trial will run there
            return NodeReport(node_id, name, (_at(name, _no_answer(f"'{first_line(error)}'")),))
        line = next((line for line in answer["lines"] if line.startswith(node_facts.MARK)), None)
        if line is None:
            evidence = "nothing in time" if answer["late"] else f"'{(answer['lines'] or ['nothing'])[-1]}'"
            return NodeReport(node_id, name, (_at(name, _no_answer(evidence)),))
        there = json.loads(line.removeprefix(node_facts.MARK))
        problems = [*_software_problems(there, self._here)]
        warnings: list[Problem] = []
        if "gpus" in there:
            problems += _gpu_problems(there)
        unseen = there["folder_error"] or self._shared.error_of(node_id)
        if unseen:
            problems.append(unshared(name, self._shared.folder, unseen))
        else:
            found = space_findings(there, self._shared.folder)
            problems += found.problems
            warnings += found.warnings
        if (skew := clock_error(question.asked, answer["started"], answer["ended"], now)) is not None:
            warnings.append(Problem("", "its clock must agree with the driver's", skew, "Use NTP."))
        has = question.resources
        amounts = f"{counted(has.get('CPU', 0), 'CPU')}, {counted(has.get('GPU', 0), 'GPU')}"
        summary = f"{amounts}, torch {there['versions']['torch']}"
        return NodeReport(
            node_id,
            name,
            tuple(_at(name, problem) for problem in problems),
            tuple(_at(name, warning) for warning in warnings),
            summary,
        )


@dataclass(frozen=True)
class _Question:
    ref: Any
    name: str
    resources: Mapping[str, float]
    asked: float
    """The driver's clock, as :func:`time.time` tells it."""
    deadline: float
    """The same, as :func:`time.monotonic` tells it."""


@dataclass(frozen=True)
class Findings:
    """What is wrong, and what may become wrong."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def own_facts(folder: Path, *, gpu: bool = False) -> dict[str, Any]:
    """Return the facts about this machine, without imports that it has made anyway."""
    return node_facts.facts({"imports": [], "gpu": gpu, "folder": str(folder), "node": None})


def require_nodes(reports: Iterable[NodeReport]) -> list[Problem]:
    """Return the warnings of all nodes, the same one of several nodes once.

    Raises:
        UserError: the problems, likewise.
    """
    reports = list(reports)
    raise_all(_merged(problem for report in reports for problem in report.problems))
    return warnings_of(reports)


def warnings_of(reports: Iterable[NodeReport]) -> list[Problem]:
    """Return the warnings of all nodes, the same one of several nodes once."""
    return _merged(warning for report in reports for warning in report.warnings)


def clock_error(asked: float, started: float, ended: float, now: float) -> str | None:
    """Return how far a node's clock is off at least, or None: it says that it worked before it was asked or after it
    had answered.

    Args:
        asked, now: the driver's clock before the question and after the answer, in seconds.
        started, ended: the node's clock in between.
    """
    if ended - now > CLOCK_SECONDS:
        return f"{ended - now:.0f} s ahead or more"
    if asked - started > CLOCK_SECONDS:
        return f"{asked - started:.0f} s behind or more"
    return None


def space_findings(there: Mapping[str, Any], folder: Path) -> Findings:
    """Judge the disks and the shared memory of a machine."""
    problems: list[Problem] = []
    warnings: list[Problem] = []
    temp = next((place for place in there["disks"] if place != str(folder)), str(folder))
    for place, what, least, low in (
        (str(folder), "the folder of results", FOLDER_LEAST, FOLDER_LOW),
        (temp, "the folder of temporary files", TEMP_LEAST, TEMP_LOW),
    ):
        disk = there["disks"].get(place)
        if disk is not None and disk["free"] < low:
            law = f"{what} {place} must have {low / GIB:g} GiB free"
            problem = Problem("", law, f"{disk['free'] / GIB:.1f} GiB", "Free some, or choose another disk.")
            (problems if disk["free"] < least else warnings).append(problem)
    if there["shm_bytes"] is not None and there["shm_bytes"] < SHM_LOW:
        remedy = "In a container, start it with --shm-size=8g; else set train.workers: 0."
        law = f"/dev/shm must have {SHM_LOW / GIB:g} GiB"
        warnings.append(Problem("", law, f"{there['shm_bytes'] / 2**20:.0f} MiB", remedy))
    return Findings(tuple(problems), tuple(warnings))


def _software_problems(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterable[Problem]:
    if there["import_error"] is not None:
        yield Problem(
            "",
            "package cellseg-search must be importable",
            f"'{there['import_error']}'",
            "Install the driver's version into the environment in which `ray start` runs there, and start that again.",
        )
        return
    install = "Install the driver's version there."
    if there["python"] != here["python"]:
        yield Problem("", f"must run Python {here['python']} as the driver does", there["python"], install)
    differing = [name for name in node_facts.PACKAGES if there["versions"][name] != here["versions"][name]]
    for name in differing:
        yield Problem(
            "", f"must have {name} {here['versions'][name]} as the driver does", f"{there['versions'][name]}", install
        )
    if not differing and there["code"] != here["code"]:
        law = "must have the driver's source of cellseg-search"
        yield Problem("", law, "other source of the same version", "Install the same commit there.")


def _gpu_problems(there: Mapping[str, Any]) -> Iterable[Problem]:
    if not there["gpus"] and there["import_error"] is None:
        build = f"torch built for CUDA {there['torch_cuda']}" if there["torch_cuda"] else "torch built without CUDA"
        yield Problem(
            "",
            "torch must see the GPUs that Ray offers",
            f"none ({build})",
            "Install a build of torch for that machine's driver, or write resources: {cpu: 1}.",
        )


def _no_answer(evidence: str) -> Problem:
    return Problem("", "must tell its versions and disks", evidence, "See /tmp/ray/session_latest/logs on it.")


def _at(name: str, problem: Problem) -> Problem:
    return problem if problem.where else problem.within(f"node {name}")


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """The problems, those that differ in their node only as one."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for problem in problems:
        places.setdefault((problem.law, problem.got, problem.remedy), []).append(problem.where)
    return [
        Problem(where[0] if len(where) == 1 else f"{where[0]} and {len(where) - 1} more like it", *words)
        for words, where in places.items()
    ]


def _facts_task() -> Any:
    """The task that runs the program on a node.

    Its function is local, so it travels by value, and it imports nothing of ours: it has to run where the package is
    missing.
    """

    def collect(program: str, wanted: str, seconds: float) -> dict[str, Any]:
        import os
        import subprocess
        import sys
        import time

        started = time.time()
        # The process finds packages where a trial's process would.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", program, wanted],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=0.9 * seconds,  # it is ended here: a task that the driver gives up leaves its processes behind
            )
        except subprocess.TimeoutExpired:
            return {"lines": [], "late": True, "started": started, "ended": time.time()}
        lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        return {"lines": lines, "late": False, "started": started, "ended": time.time()}

    return ray.remote(num_cpus=0, max_retries=0)(collect)
