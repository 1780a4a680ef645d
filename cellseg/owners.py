"""Scratch of a process that several processes keep in one folder: whose it is, and whether its owner is gone."""

import os
import platform


def owner_mark() -> str:
    """Return the mark of this process: ``PID-HOST``."""
    return f"{os.getpid()}-{platform.node()}"


def is_gone(mark: str) -> bool:
    """Say whether the process with this mark has ended. Of one on another host nothing is known: it may be there."""
    pid, _, host = mark.partition("-")
    if host != platform.node() or not pid.isdecimal():
        return False
    return has_ended(int(pid))


def has_ended(pid: int) -> bool:
    """Say whether no process of this machine has the number ``pid``."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # somebody else's, or no number of a process
    return False
