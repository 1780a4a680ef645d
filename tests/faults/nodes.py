"""Machines of a Ray cluster that come and go while the real command trains a tiny study on them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from search.cluster.signals import descendants
from search.storage.store import StudyStore
from search.storage.tables import TrialRow
from search.storage.trial_logs import last_attempt, log_path, read_lines

Found = TypeVar("Found")
ROOT = Path(__file__).parents[2]
PATIENCE = 400.0
"""Seconds after which a thing that must happen has not: machines that run tests are slow."""
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",  # else trials wait for everything beside the tests
    "RAY_agent_register_timeout_ms": "120000",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
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
SPACE = """
metric: segm/AP50
direction: maximize
trials: {trials}
epochs: {epochs}
asha: off
keep: 1
resources: {{cpu: 1}}
data:
  generate: {{train: 24, test: 3, seed: 1, size: 64}}
space:
  optim.lr: {{low: 1e-3, high: 1e-2, log: true}}
  model.backbone: resnet10t
  model.weights: none
  model.fpn_channels: 8
  model.box_head_width: 16
  model.mask_head_layers: 1
  model.mask_head_width: 8
  model.rpn_proposals: 20
  model.roi_samples: 8
"""


class Machines:
    """A cluster whose head takes no trials. Machines hold one trial each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self.add(num_cpus=0)
        self.address: str = self._cluster.address
        self._others: list[subprocess.Popen] = []

    def add(self, num_cpus: int = 1, **what: Any) -> Any:
        """A new machine. Ray gives one half a minute to start, which a busy machine may need more of."""
        for _ in range(4):
            try:
                return self._cluster.add_node(num_cpus=num_cpus, num_gpus=0, object_store_memory=100 * 2**20, **what)
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
        raise AssertionError("no Ray node starts here")

    def add_without_package(self, folder: Path) -> Any:
        """A machine on which this package is not installed."""
        (folder / "sitecustomize.py").write_text(NO_PACKAGE)
        return self.add(env_vars={"PYTHONPATH": os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]])})

    def add_unshared(self, results: Path) -> subprocess.Popen:
        """A machine on which another, empty disk is mounted in the place of the results."""
        start = f"ray start --block --address={self.address} --num-cpus=1 --num-gpus=0 --object-store-memory=100000000"
        root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        command = [
            "unshare",
            *root,
            "--mount",
            "sh",
            "-ec",
            f'mount -t tmpfs nothing "$0" && exec {start}',
            str(results),
        ]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        machine = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        self._others.append(machine)
        return machine

    def turn_off(self, machine: subprocess.Popen) -> None:
        """End a machine that :meth:`add_unshared` made."""
        if machine.poll() is None:
            machine.terminate()
            with suppress(subprocess.TimeoutExpired):
                machine.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()

    def raylet(self, machine: Any) -> subprocess.Popen:
        """The process that makes a machine a part of the cluster: its trials' processes are its children."""
        return machine.all_processes["raylet"][0].process

    def remove(self, machine: Any) -> None:
        """End a machine that :meth:`add` made, if it has not ended."""
        self._cluster.remove_node(machine)

    def close(self) -> None:
        for machine in self._others:
            self.turn_off(machine)
        self._cluster.shutdown()


@contextmanager
def machines() -> Iterator[Machines]:
    """A cluster for the time of the block, in an environment of its own."""
    from ray._private import utils as ray_utils

    with pytest.MonkeyPatch.context() as patch:
        # A raylet dies if its dashboard's agent takes long to start, as on a busy machine it does; without the
        # dashboard's packages, which nothing here needs, it takes a fraction.
        patch.setattr(ray_utils, "get_dashboard_dependency_error", lambda: ImportError("not wanted"))
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        cluster = Machines()
        try:
            yield cluster
        finally:
            cluster.close()


class Search:
    """The command, training a study on a cluster. Use it as a context: it does not outlive the test."""

    def __init__(self, cluster: Machines, folder: Path, *, trials: int, epochs: int):
        self.results, self.epochs = folder / "results", epochs
        self.results.mkdir()
        self._log = folder / "search.log"
        self._place = self.results / "tiny"
        (folder / "tiny.yaml").write_text(SPACE.format(trials=trials, epochs=epochs))
        self._command = [sys.executable, "-m", "search.run", str(folder / "tiny.yaml"), "--address", cluster.address]
        self._command += ["--results", str(self.results)]
        self._environment = os.environ | {"CELLSEG_CACHE": str(folder / "cache")}
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def __enter__(self) -> "Search":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def said(self) -> str:
        """What it printed, in lines that nobody wrapped."""
        return self._log.read_text()

    def rows(self) -> list[TrialRow]:
        return StudyStore.open(self._place).trials() if StudyStore.exists(self._place) else []

    def on(self, raylet: subprocess.Popen) -> list[int]:
        """Trials that are half-way in a process of that machine."""
        processes = set(descendants(raylet.pid))
        rows = [row for row in self.rows() if row.state == "RUNNING" and 0 < row.epochs < self.epochs]
        attempts = {row.number: last_attempt(read_lines(log_path(self._place, row.number))) for row in rows}
        return [number for number, attempt in attempts.items() if attempt is not None and attempt.pid in processes]

    def num_attempts(self, number: int) -> int:
        """Processes that a trial has had."""
        return len(re.findall("^=== ", "\n".join(read_lines(log_path(self._place, number))), re.MULTILINE))

    def wait(self, condition: Callable[[], Found], what: str, *, running: bool = True) -> Found:
        """Wait until something is the case; return it.

        Args:
            running: whether the search must not have ended before.
        """
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            ended = running and self.process.poll() is not None and not condition()
            assert not ended, f"the search ended with {self.process.returncode} before: {what}\n{self.said[-3000:]}"
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}\n{self.said[-3000:]}"
            time.sleep(0.1)
        return found

    def end(self) -> int:
        """Wait for the command's end; return its status."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def is_complete(self) -> bool:
        """Whether all trials are, with every epoch on record once."""
        store, epochs = StudyStore.open(self._place), list(range(1, self.epochs + 1))
        return all(
            row.state == "COMPLETE" and sorted(epoch.epoch for epoch in store.epochs(row.number)) == epochs
            for row in store.trials()
        )
