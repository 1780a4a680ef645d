"""What the tests of the launch files share."""

import shutil
import subprocess
from collections.abc import Callable, Sequence

import pytest

OWN_WORLD = ("unshare", "--pid", "--net", "--mount", "--fork", "--kill-child", "--mount-proc", "bash", "-c")
"""A world in which `ray stop` finds no Ray but that of the test, and ports are free."""


@pytest.fixture(scope="session")
def in_own_world() -> Callable[[Sequence[str]], list[str]]:
    """Wraps a command so that it runs among processes and ports of its own; skips where that cannot be had."""
    possible = [*OWN_WORLD, "mount -t tmpfs tmpfs /dev/shm && ip link set lo up"]
    if shutil.which("unshare") is None or subprocess.run(possible, capture_output=True).returncode != 0:
        pytest.skip("namespaces cannot be made here")
    # Ray's sessions too: it finds those of others in /tmp/ray.
    prepare = 'mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && ip link set lo up && exec "$@"'
    return lambda command: [*OWN_WORLD, prepare, "world", *command]
