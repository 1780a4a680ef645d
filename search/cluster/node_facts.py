"""The facts about a machine that decide whether trials can run on it.

The driver sends the text of this file to every node, where the package may be missing: it uses the standard library
only, and prints what it finds as JSON. It judges nothing; see :mod:`search.cluster.preflight`.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGES = ("cellseg-search", "ray", "torch", "torchvision")
"""Packages whose versions must be the same on all nodes."""
CODE = ("cellseg", "search")
"""Packages whose source must be the same on all nodes."""
MARK = "facts about this node: "
"""Begins the line that holds the facts: imports may print, too."""
MARKER_SECONDS = 5.0
"""Network file systems may show a new file this late."""


def facts(wanted: dict[str, Any]) -> dict[str, Any]:
    """Collect the facts.

    Args:
        wanted: ``imports``: modules to be imported. ``gpu``: whether torch is asked for GPUs. ``folder``: where results
            go. ``node``: name of the file that this node writes there, or None; ``marker``: name of the file that the
            driver wrote there; ``token``: what is in both.
    """
    found: dict[str, Any] = {"host": socket.gethostname(), "python": "{}.{}".format(*sys.version_info)}
    found["import_error"] = import_error(wanted["imports"])
    found["versions"] = {name: version(name) for name in PACKAGES}
    found["code"] = {name: code_of(name) for name in CODE}
    found |= gpu_facts() if wanted["gpu"] else {}
    found["folder_error"] = shared_folder_error(wanted) if wanted["node"] else None
    found["disks"] = {place: free_space(place) for place in (wanted["folder"], tempfile.gettempdir())}
    found["shm_bytes"] = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None
    return found


def import_error(modules: list[str]) -> str | None:
    """Return why one of the modules cannot be imported, in a line; None if all can."""
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # of a broken installation anything can come
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def version(package: str) -> str | None:
    """Return the installed version of a package, without the build that follows a plus; None if it is not there."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def code_of(package: str) -> str | None:
    """Return a fingerprint of a package's source; None if it is not there."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    digest = hashlib.sha256()
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def gpu_facts() -> dict[str, Any]:
    """Return what torch knows of GPUs: how many it sees, and the CUDA that it was built for."""
    try:
        import torch

        return {"gpus": torch.cuda.device_count(), "torch_cuda": torch.version.cuda}
    except BaseException as error:
        return {"gpus": 0, "torch_cuda": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def shared_folder_error(wanted: dict[str, Any]) -> str | None:
    """Look for the driver's file in the folder of results, and leave one of this node's: None if both went well."""
    folder = Path(wanted["folder"])
    evidence = marker_error(folder / wanted["marker"], wanted["token"])
    if evidence is not None:
        return evidence
    try:
        with (folder / wanted["node"]).open("w") as file:
            file.write(wanted["token"])
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"'{error.strerror}' when it writes there"
    return None


def marker_error(marker: Path, token: str, seconds: float = MARKER_SECONDS) -> str | None:
    """Wait until a file holds the token; None if it does in time, else what was found."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            text = marker.read_text()
            if text == token:
                return None
            evidence = "another file of that name"
        except FileNotFoundError:
            evidence = "no such file" if marker.parent.is_dir() else "no such folder"
        except OSError as error:
            evidence = f"'{error.strerror}'"
        if time.monotonic() > deadline:
            return evidence
        time.sleep(0.2)


def free_space(place: str) -> dict[str, int] | None:
    """Return ``free`` and ``total`` bytes of the disk that holds a folder; None if the folder is not there."""
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return None
    return {"free": usage.free, "total": usage.total}


if __name__ == "__main__":
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "all"):  # Ray may hide all GPUs from a task that asks for none
        del os.environ["CUDA_VISIBLE_DEVICES"]
    print(MARK + json.dumps(facts(json.loads(sys.argv[1]))))  # noqa: T201
