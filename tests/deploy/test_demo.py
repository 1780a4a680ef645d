"""The demo's hosts, and the demo itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HOSTS = """
import os, subprocess, sys
from pathlib import Path
from deploy.demo.hosts import Host, enter_own_world

enter_own_world()
shared = Path(sys.argv[1])
first, second = Host("host-a", 1, shared), Host("host-b", 2, shared)

LISTEN = "import socket, time; s = socket.create_server(('10.77.0.2', 5000)); print('up', flush=True); time.sleep(60)"
CONNECT = "import socket; socket.create_connection(('10.77.0.2', 5000), timeout=2); print('reached')"
server = second.start([sys.executable, "-c", LISTEN], os.environ, subprocess.PIPE)
server.stdout.readline()


def said(host, *command):
    return host.start(command, os.environ, subprocess.PIPE).communicate(timeout=60)[0].strip().splitlines()[-1:]


def facts(what):
    print(what, said(first, sys.executable, "-c", CONNECT) == ["reached"], end=" ")
    print(said(second, "sh", "-c", f"echo x > {shared}/second && echo written") == ["written"], server.poll())


print("names", *said(first, "hostname"), *said(second, "hostname"))
facts("joined")
second.cut_off()
facts("cut")
second.kill()
print("killed", server.wait(10))
print("first", *said(first, "sh", "-c", f"echo x > {shared}/first && echo written"))
"""


def run(*command: str, timeout: float) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    if "must be able to make namespaces" in done.stderr or "needs the program" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done


def test_a_host_that_is_cut_off_lives_unreachable_and_one_that_is_killed_is_gone(tmp_path):
    (tmp_path / "hosts.py").write_text(HOSTS)
    done = run(sys.executable, str(tmp_path / "hosts.py"), str(tmp_path), timeout=110)
    assert done.stdout.splitlines() == [
        "names host-a host-b",
        "joined True True None",
        "cut False False None",
        "killed -9",
        "first written",
    ], done.stderr


@pytest.mark.slow  # four Rays and a study
@pytest.mark.timeout(1800)
def test_a_study_outlives_its_hosts(tmp_path):
    """One is cut off, one joins, one is killed: the demo itself checks that nothing is lost."""
    done = run(sys.executable, "-m", "deploy.demo.three_hosts", "--results", str(tmp_path), timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("| COMPLETE")
