"""The CPUs of a process whose machine has more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cellseg.device import usable_cpus

MINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def grouped(folder: Path, membership: str, **limits: str) -> int:
    """The CPUs of a process in these control groups, on a machine that has plenty."""
    (folder / "membership").write_text(membership)
    for name, text in limits.items():
        path = folder / "groups" / name.replace("__", "/").replace("_max", ".max").replace("cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return usable_cpus(folder / "membership", folder / "groups")


@pytest.fixture
def _many(monkeypatch):
    monkeypatch.setattr("cellseg.device.os.sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.usefixtures("_many")
@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        ({}, 64),
        ({"jobs__7__cpu_max": "max 100000"}, 64),
        ({"jobs__7__cpu_max": "350000 100000"}, 3),
        ({"jobs__7__cpu_max": "20000 100000"}, 1),
        ({"jobs__7__cpu_max": "800000 100000", "jobs__cpu_max": "400000 100000"}, 4),
        ({"cpu_max": "250000 50000"}, 5),  # a container that shows its own group as the root
        ({"jobs__7__cpu_max": "odd"}, 64),
    ],
)
def test_control_groups_and_those_around_them_bound_a_process(tmp_path, limits, cpus):
    assert grouped(tmp_path, "0::/jobs/7\n", **limits) == cpus


@pytest.mark.usefixtures("_many")
def test_control_groups_of_version_1(tmp_path):
    membership = "3:cpuset:/x\n1:cpu,cpuacct:/jobs/7\n0::/\n"
    limits = {"cpu,cpuacct__jobs__7__cfs_quota_us": "600000", "cpu,cpuacct__jobs__7__cfs_period_us": "100000"}
    assert grouped(tmp_path, membership, **limits, **{"cpu,cpuacct__cfs_quota_us": "-1"}) == 6


def test_without_control_groups_the_affinity_counts(tmp_path):
    assert usable_cpus(tmp_path / "none", tmp_path) == MINE


ONE_CPU = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import ray
from search.cluster.connect import ray_cluster

def init(**settings):
    print(settings["num_cpus"])
    raise RuntimeError("enough")

ray.init, ray.shutdown = init, lambda: None
try:
    with ray_cluster(None):
        pass
except Exception as error:
    assert "enough" in str(error), error
"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_search_on_a_part_of_a_machine_starts_ray_with_that_part(tmp_path):
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ONE_CPU], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1:] == ["1"], done.stderr
