"""Addresses of pages that listen on one machine only, with the way there from another."""

import platform


def describe_address(host: str, port: int, machine: str = "") -> str:
    """Write the address of a page and, if it listens on a machine's own address only, the command that makes it
    reachable.

    Args:
        machine: that it is on, as others know it; empty for this one.
    """
    url = f"http://{host}:{port}"
    if not host.startswith("127.") and host != "localhost":
        return url
    return f"{url} (from another machine first: {tunnel(port, machine or platform.node())})"


def tunnel(port: int, machine: str) -> str:
    """Return the command that forwards a port of this machine to the same one of ``machine``."""
    return f"ssh -N -L {port}:127.0.0.1:{port} {machine}"
