"""A study on three hosts: one is cut off, one joins, one is killed, and the study ends complete.

``python -m deploy.demo.three_hosts`` in the repository, on Linux. See deploy/demo/README.md.
"""

import argparse
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from cellseg.cli import say
from deploy.demo.hosts import Host, enter_own_world
from search.storage.store import StudyStore
from search.storage.tables import TrialRow

Found = TypeVar("Found")
SPACE = Path(__file__).with_name("study.yaml")
ROOT = Path(__file__).parents[2]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
STUDY, PORT = "three-hosts", 6379
PATIENCE = 600.0
"""Seconds after which a thing that must happen has not."""
STARTS = 4
"""Ray gives a host half a minute to start, which a busy machine may exceed."""
RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A host that does not answer is given up after about 20 s. By default it takes more than a minute.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
    # Several Rays start on the cores of one machine.
    "RAY_agent_register_timeout_ms": "120000",
    # Ray gives trials a low priority, so that on a busy machine they would wait for everything else.
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if the study ended complete, else 1."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo.three_hosts", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=Path("results/demo"), metavar="DIR", help="folder of the demo's results"
    )
    arguments = parser.parse_args(argv)
    enter_own_world()
    return Demo(arguments.results.resolve()).run()


class Demo:
    """The cluster, the driver, and what the demo knows of the study by its tables.

    Args:
        results: the folder that the hosts share. What an earlier demo left there is removed.
    """

    def __init__(self, results: Path):
        self._results = results
        self._folder = results / STUDY
        shutil.rmtree(self._folder, ignore_errors=True)
        results.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self._environment = os.environ | RAY_ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": path}
        self._begun = time.monotonic()
        self._hosts: dict[str, Host] = {}
        self._was_on: dict[int, list[str]] = {}  # trial -> its hosts, in order
        self._driver: subprocess.Popen[str] | None = None

    def run(self) -> int:
        """Tell the story from beginning to end."""
        for name in ("host-a", "host-b", "host-c"):
            self._add_host(name)
        self._tell("host-a starts the search")
        driver = self._start_driver()
        self._wait(lambda: {"host-a", "host-b", "host-c"} <= self._used(), "all three hosts have trained an epoch")

        cut = self._wait(lambda: self._halfway("host-c"), "a trial is half-way on host-c")
        self._hosts["host-c"].cut_off()
        self._tell(f"host-c IS CUT OFF from the network, with {_names(cut)} half-way")
        self._add_host("host-d")
        self._tell("host-d HAS JOINED")
        self._wait(lambda: "host-d" in self._used(), "host-d trains")
        self._wait(lambda: self._left(cut, "host-c"), f"{_names(cut)} went on elsewhere")

        killed = self._wait(lambda: self._halfway("host-b"), "a trial is half-way on host-b")
        self._hosts["host-b"].kill()
        self._tell(f"host-b IS KILLED, with {_names(killed)} half-way")
        self._wait(lambda: self._left(killed, "host-b"), f"{_names(killed)} went on elsewhere")

        self._tell("nothing else happens to the hosts; the study goes on to its end")
        self._wait_while_it_trains(driver)
        self._reader.join(10)
        return self._judge(driver.returncode)

    # Hosts

    def _add_host(self, name: str) -> None:
        """Start a host and its Ray: the first one's is the cluster's head."""
        host = Host(name, len(self._hosts) + 1, self._results)
        self._hosts[name] = host
        head = next(iter(self._hosts.values()))
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if host is not head:
            where = [f"--address={head.address}:{PORT}"]
        size = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=200000000"]
        ray = str(Path(sys.executable).with_name("ray"))
        for _ in range(STARTS):
            start = [ray, "start", *where, f"--node-ip-address={host.address}", *size]
            process = host.start(start, self._environment, subprocess.PIPE)
            said, _ = process.communicate()
            if process.returncode == 0:
                self._tell(f"{name} is up at {host.address}, with one slot")
                return
            host.start([ray, "stop", "--force"], self._environment, subprocess.DEVNULL).wait()
        raise RuntimeError(f"Ray does not start on {name}:\n{said}")

    # The search

    def _start_driver(self) -> subprocess.Popen[str]:
        head = self._hosts["host-a"]
        command = [sys.executable, "-m", "search.run", str(SPACE), "--study", STUDY]
        command += ["--results", str(self._results), "--address", f"{head.address}:{PORT}"]
        self._driver = head.start(command, self._environment, subprocess.PIPE)
        self._reader = threading.Thread(target=self._pass_on, args=[self._driver], daemon=True)
        self._reader.start()
        return self._driver

    def _pass_on(self, driver: subprocess.Popen[str]) -> None:
        assert driver.stdout is not None
        for line in driver.stdout:
            say(f"        | {_COLOUR.sub('', line).rstrip()}")

    def _rows(self) -> list[TrialRow]:
        """The trials, as the study's tables show them now."""
        if not (self._folder / "trials.parquet").exists():
            return []
        rows = StudyStore.open(self._folder).trials()
        for row in rows:
            hosts = self._was_on.setdefault(row.number, [])
            if row.node and row.node not in hosts[-1:]:
                hosts.append(row.node)
        return rows

    def _used(self) -> set[str]:
        self._rows()
        return {host for hosts in self._was_on.values() for host in hosts}

    def _halfway(self, host: str) -> dict[int, int]:
        """Trials that run on a host and have begun: number -> epochs."""
        rows = self._rows()
        begun = [row for row in rows if row.state == "RUNNING" and row.node == host and 1 <= row.epochs <= 4]
        return {row.number: row.epochs for row in begun}

    def _left(self, trials: Mapping[int, int], host: str) -> bool:
        """Whether all these trials have trained elsewhere, or had ended before they could lose their host."""
        rows = {row.number: row for row in self._rows()}
        return all(rows[number].node != host or rows[number].state == "COMPLETE" for number in trials)

    # Telling and waiting

    def _tell(self, text: str) -> None:
        say(f"{time.monotonic() - self._begun:5.0f} s | {text}")

    def _wait(self, condition: Callable[[], Found], what: str) -> Found:
        """Wait until something is the case, and say so; return it."""
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {PATIENCE:g} s: {what}")
            if self._driver is not None and self._driver.poll() is not None:
                raise RuntimeError(f"the search ended, with status {self._driver.returncode}, before: {what}")
            time.sleep(0.2)
        self._tell(what)
        return found

    def _wait_while_it_trains(self, driver: subprocess.Popen[str]) -> None:
        """Wait for the search's end, however long, as long as epochs are finished."""
        epochs, deadline = -1, 0.0
        while driver.poll() is None:
            if (now := sum(row.epochs for row in self._rows())) != epochs:
                epochs, deadline = now, time.monotonic() + PATIENCE
            if time.monotonic() > deadline:
                raise RuntimeError(f"no epoch within {PATIENCE:g} s")
            time.sleep(0.2)

    def _judge(self, status: int) -> int:
        """Say how the study ended; return 0 if it is complete."""
        rows = self._rows()
        store = StudyStore.open(self._folder)
        planned = store.study["space"]["trials"], store.study["space"]["epochs"]
        counts = [sorted(epoch.epoch for epoch in store.epochs(row.number)) for row in rows]
        complete = [row for row in rows if row.state == "COMPLETE"]
        is_complete = (
            status == 0
            and len(complete) == len(rows) == planned[0]
            and all(epochs == list(range(1, planned[1] + 1)) for epochs in counts)
        )
        moved = {number: hosts for number, hosts in self._was_on.items() if len(hosts) > 1}
        self._tell(f"the search ended with status {status}: {len(complete)} of {planned[0]} trials complete")
        self._tell(f"epochs on record: {sum(map(len, counts))} of {planned[0] * planned[1]}")
        for number, hosts in sorted(moved.items()):
            self._tell(f"t{number:04d} moved: {' -> '.join(hosts)}")
        self._tell("COMPLETE" if is_complete else "NOT COMPLETE")
        return 0 if is_complete else 1


def _names(trials: Mapping[int, int]) -> str:
    return ", ".join(f"t{number:04d} (epoch {epochs})" for number, epochs in trials.items())


if __name__ == "__main__":
    sys.exit(main())
