"""Machines of a Ray cluster that come and go, and the process that has them.

Ray keeps a process's token and its way to ask for it. So the cluster has a process of its own, and the tests, whose
process starts other Rays, tell it what to do: ``python -m tests.faults.machines`` answers each JSON line with another.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.cluster.signals import descendants

REPOSITORY = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "search"), str(REPOSITORY / "tests")])
PATIENCE = 240.0
"""Seconds after which a thing that must happen has not: machines that run tests are slow."""
RAY_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else a busy machine lets trials wait for everything beside the tests
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_AUTH_MODE": "token",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": PYTHONPATH,
}
NO_PACKAGE = """
import sys

class Nowhere:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {"cellseg", "search"}:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Nowhere)
"""
"""What a machine's Python runs first that lacks the package."""


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster, as its processes know it."""

    number: int
    raylet: int
    """Process that makes it a part of the cluster: its trials' processes are its children."""

    def holds(self, pid: int) -> bool:
        """Whether a process runs there."""
        return pid in descendants(self.raylet)


class Machines:
    """A cluster with a head on which no trial runs, and machines that come and go. It asks for a token."""

    def __init__(self) -> None:
        self.environment = RAY_SETTINGS | {"RAY_AUTH_TOKEN": os.urandom(16).hex()}
        """What a process needs to join the cluster."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.machines"],
            cwd=REPOSITORY,
            env=os.environ | self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._unshared: list[subprocess.Popen] = []
        self.address: str = self._ask(do="address")

    def _ask(self, **what: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process of the cluster ended with {self._process.wait()}: {what}"
        return json.loads(answer)

    def add(self, num_cpus: int, **environment: str) -> Machine:
        """Return a new machine."""
        return Machine(**self._ask(do="add", num_cpus=num_cpus, environment=environment))

    def add_without_package(self, num_cpus: int, folder: Path) -> Machine:
        """Return a new machine on which this package is not installed."""
        (folder / "sitecustomize.py").write_text(NO_PACKAGE)
        return self.add(num_cpus, PYTHONPATH=os.pathsep.join([str(folder), PYTHONPATH]))

    def add_unshared(self, num_cpus: int, results: Path) -> subprocess.Popen:
        """Return a new machine on which another, empty disk is mounted in the place of the results."""
        start = f"-m ray.scripts.scripts start --block --address={self.address} --num-cpus={num_cpus} --num-gpus=0"
        script = f'mount -t tmpfs nothing "$0" && exec "$1" {start} --object-store-memory=100000000'
        command = ["unshare", *_AS_ROOT, "--mount", "sh", "-ec", script, str(results), sys.executable]
        environment = os.environ | self.environment
        machine = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        self._unshared.append(machine)
        return machine

    def turn_off(self, machine: subprocess.Popen) -> None:
        """End a machine of :meth:`add_unshared`."""
        if machine.poll() is None:
            machine.terminate()
            with suppress(subprocess.TimeoutExpired):
                machine.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(machine.pid, signal.SIGKILL)
        machine.wait()

    def send(self, machine: Machine, number: int) -> None:
        """Send its raylet a signal, and wait until that has ended."""
        self._ask(do="send", number=machine.number, signal=number)

    def remove(self, machine: Machine) -> None:
        """End a machine of :meth:`add`, if it has not ended."""
        self._ask(do="remove", number=machine.number)

    def shutdown(self) -> None:
        for machine in self._unshared:
            self.turn_off(machine)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


@contextmanager
def machines() -> Iterator[Machines]:
    """A cluster for the time of the block."""
    cluster = Machines()
    try:
        yield cluster
    finally:
        cluster.shutdown()


_AS_ROOT = () if os.geteuid() == 0 else ("--user", "--map-root-user")


def can_unshare() -> bool:
    """Whether a process may have mounts of its own here."""
    command = ["unshare", *_AS_ROOT, "--mount", "mount", "-t", "tmpfs", "nothing", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray gives a machine half a minute to start, which a busy one may need more of."""

    def wait_for_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    return wait_for_node


def serve() -> None:
    """Do what the lines on standard input say, until it ends."""
    from ray._private import services
    from ray._private import utils as ray_utils
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints too
    # Without the dashboard's packages, which nothing here needs, a machine starts in a fraction of the time.
    ray_utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    services.get_node = _patient(services.get_node)
    cluster = Cluster()
    settings: dict[str, Any] = {
        "num_gpus": 0,
        "object_store_memory": 100 * 2**20,
        "include_log_monitor": False,
    }
    cluster.add_node(num_cpus=0, include_dashboard=False, no_monitor=True, **settings)
    nodes: dict[int, Any] = {}
    try:
        for line in sys.stdin:
            wanted = json.loads(line)
            answer: Any = None
            if wanted["do"] == "address":
                answer = cluster.address
            elif wanted["do"] == "add":
                node = cluster.add_node(num_cpus=wanted["num_cpus"], env_vars=wanted["environment"], **settings)
                nodes[len(nodes)] = node
                raylet = node.all_processes["raylet"][0].process
                answer = {"number": len(nodes) - 1, "raylet": raylet.pid}
            elif wanted["do"] == "send":
                raylet = nodes[wanted["number"]].all_processes["raylet"][0].process
                raylet.send_signal(wanted["signal"])
                raylet.wait()  # its workers take it for alive until then
            elif (node := nodes[wanted["number"]]) in cluster.list_all_nodes():
                cluster.remove_node(node)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    serve()
