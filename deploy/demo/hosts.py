"""Hosts on one Linux machine: namespaces with a network, a hostname, processes and shared memory of their own.

To the programs in them, such hosts are machines. Their disks are those of this machine, so every folder is shared,
as it would be by NFS; a host that is cut off can no longer write to the one folder that matters.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

NETWORK = "10.77.0"
"""First three numbers of the hosts' addresses."""
_BRIDGE = "cells"
_SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
_INSIDE = "CELLSEG_DEMO_INSIDE"
# Ray's sessions and its shared memory are a host's own. The rest of /tmp stays: the results may lie there.
_INIT = """
hostname "$1"
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
echo up
exec sleep infinity
"""


def enter_own_world() -> None:
    """Start this program again in namespaces of its own, and end with its status; return if that was done.

    All that it makes (network devices, mounts, processes) goes with it, however it ends.
    """
    if os.environ.get(_INSIDE):
        _call("ip", "link", "set", "lo", "up")
        _call("ip", "link", "add", "name", _BRIDGE, "type", "bridge")
        _call("ip", "address", "add", f"{NETWORK}.254/24", "dev", _BRIDGE)
        _call("ip", "link", "set", _BRIDGE, "up")
        return
    # Without root, a user namespace makes one that is root in there only.
    root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    world = ["unshare", *root, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        possible = subprocess.run([*world, "ip", "link", "add", "name", _BRIDGE, "type", "bridge"], capture_output=True)
    except FileNotFoundError as error:
        sys.exit(f"error: the demo needs the program {error.filename} (packages util-linux and iproute2).")
    if possible.returncode != 0:
        reason = possible.stderr.decode().strip().splitlines()[-1:] or ["no reason given"]
        sys.exit(f"error: the demo must be able to make namespaces, but got '{reason[0]}'. Run it on Linux, as root.")
    command = [*world, sys.executable, *sys.orig_argv[1:]]
    sys.exit(subprocess.run(command, env=os.environ | {_INSIDE: "1"}).returncode)


class Host:
    """A host that is up.

    Args:
        number: last number of its address, 1 to 253.
        shared: folder that it can no longer write to when it is cut off.
    """

    def __init__(self, name: str, number: int, shared: Path):
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self._shared = shared
        flags = ["--fork", "--kill-child", "--mount-proc", "bash", "-euc", _INIT, "init", name]
        # Its errors are only of interest here: killed, it complains about that.
        self._unshare = subprocess.Popen(
            ["unshare", *_SPACES, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._unshare.stdout is not None and self._unshare.stderr is not None
        if self._unshare.stdout.readline() != "up\n":
            raise RuntimeError(f"host {name} does not start: {self._unshare.stderr.read().strip()}")
        # The first process of the host: all others end with it.
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self._init = int(children.read_text())
        self._join_network()

    def _join_network(self) -> None:
        _call("ip", "link", "add", "name", self.name, "type", "veth", "peer", "name", f"{self.name}-in")
        _call("ip", "link", "set", f"{self.name}-in", "netns", str(self._init), "name", "eth0")
        _call("ip", "link", "set", self.name, "master", _BRIDGE, "up")
        for command in (
            f"ip address add {self.address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {NETWORK}.254",
        ):
            _call(*self._inside(), *command.split())

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], output: int | IO[str] | None = None
    ) -> subprocess.Popen:
        """Start a command on this host; its output is text."""
        return subprocess.Popen(
            [*self._inside(), *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            text=True,
        )

    def cut_off(self) -> None:
        """Pull the network's plug. The shared folder goes with it, as NFS would. The host's processes run on."""
        _call("ip", "link", "set", self.name, "down")
        _call(*self._inside(), "mount", "-t", "tmpfs", "-o", "ro", "nothing", str(self._shared))

    def kill(self) -> None:
        """Turn the power off: all processes end at once, with no last word."""
        os.kill(self._init, 9)
        self._unshare.wait()

    def _inside(self) -> list[str]:
        return ["nsenter", "--target", str(self._init), *_SPACES, "--"]


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
