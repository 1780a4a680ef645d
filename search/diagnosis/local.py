"""The findings about this installation, this machine, the folder of results, and data."""

import fcntl
import os
import platform
import tempfile
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import cellseg
from cellseg.config import DataConfig
from cellseg.errors import UserError
from search.diagnosis.finding import Finding, finding_of, findings_of_error
from search.storage.remote import Remote, remote_results

PACKAGE = "cellseg-search"
INSTALL = "Install it again, as README.md says."
SHOWN = 3
"""Number of errors or warnings of a data set that are shown; ``cellseg-search check`` shows all."""


def installation() -> Iterator[Finding]:
    """Find out whether this package and those that it needs are there, in versions that fit."""
    try:
        required = metadata.requires(PACKAGE) or []
        python = metadata.metadata(PACKAGE)["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield Finding("installation", "problem", f"the package {PACKAGE} is not installed", INSTALL)
        return
    here = platform.python_version()
    if SpecifierSet(python).contains(here, prereleases=True):
        yield Finding("python", "ok", here)
    else:
        yield Finding("python", "problem", f"must be {python}, but got {here}", "Use another Python.")
    requirements = [Requirement(text) for text in required]
    needed = [needs for needs in requirements if needs.marker is None or needs.marker.evaluate({"extra": ""})]
    unmet, differing, tested = [], [], tested_versions()
    for needs in needed:
        found = _version(needs.name)
        if found is None or not needs.specifier.contains(found, prereleases=True):
            unmet.append(f"{needs.name}{needs.specifier} (got {found or 'nothing'})")
        elif (wanted := tested.get(needs.name.lower())) is not None and found.partition("+")[0] != wanted:
            differing.append(f"{needs.name} {found} ({wanted})")
    if unmet:
        yield Finding("packages", "problem", f"must have {', '.join(unmet)}", INSTALL)
    else:
        others = f"; others than the tested: {', '.join(differing)}" if differing else ""
        yield Finding("packages", "ok", f"{PACKAGE} {metadata.version(PACKAGE)} and the {len(needed)} it needs{others}")
    yield from _pycocotools()


def tested_versions() -> dict[str, str]:
    """Return the versions of ``constraints.txt``, of a package installed from a checkout; else none."""
    file = Path(cellseg.__file__).parents[1] / "constraints.txt"
    if not file.is_file():
        return {}
    pairs = (line.partition("==") for line in file.read_text(encoding="utf-8").splitlines())
    return {name.strip().lower(): version.strip() for name, equal, version in pairs if equal}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _pycocotools() -> Iterator[Finding]:
    """Its compiled part breaks when numpy's binary interface changes."""
    try:
        import numpy as np
        from pycocotools import mask

        plane = np.zeros((3, 4), np.uint8, order="F")
        plane[1, 1:3] = 1
        area = int(mask.area(mask.encode(plane)))
    except (ImportError, ValueError, OSError) as error:
        yield Finding("pycocotools", "problem", f"must encode masks, but got '{error}'", INSTALL)
        return
    assert area == 2
    yield Finding("pycocotools", "ok", metadata.version("pycocotools"))


def machine() -> Iterator[Finding]:
    """Find out what this machine offers to training, and whether its token is private."""
    yield from _torch()
    from search.cluster.token import is_open, read_token, token_file

    file = token_file()
    if read_token() is None:
        yield Finding("token", "ok", "none yet; the first search makes one")
    elif file.is_file() and is_open(file):
        found = f"{file} must be readable by its owner alone, but others may read it"
        yield Finding("token", "warning", found, f"Run `chmod 600 {file}`: who reads it can run code as you.")
    else:
        yield Finding("token", "ok", f"{file}" if file.is_file() else "RAY_AUTH_TOKEN")


def _torch() -> Iterator[Finding]:
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding("torch", "problem", f"torch and torchvision must be importable, but got '{error}'", INSTALL)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Finding("torch", "ok", f"{torch.__version__} ({build}), torchvision {torchvision.__version__}")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    nvidia = Path("/proc/driver/nvidia/gpus")
    if names:
        yield Finding("GPU", "ok", ", ".join(names))
    elif nvidia.is_dir() and any(nvidia.iterdir()):
        found = f"torch must see this machine's GPU, but it sees none ({build})"
        yield Finding(
            "GPU", "warning", found, "Install a build of torch for this driver, and see CUDA_VISIBLE_DEVICES."
        )
    else:
        yield Finding("GPU", "ok", "none; trials train on CPUs")


def _store(remote: Remote) -> Iterator[Finding]:
    """Find out whether objects can be created, read and removed; the folder stands for a store then."""
    name = f".doctor-{uuid.uuid4().hex}"
    try:
        created = remote.create(b"doctor", name), remote.create(b"doctor", name)
        remote.remove([name])
    except UserError as error:
        yield from findings_of_error("store", error)
        return
    yield Finding("store", "ok", f"{remote.uri} can be written")
    if created != (True, False):
        yield Finding("store", "problem", f"{remote.uri} must refuse to create what is there, but did not")


def results(folder: Path) -> Iterator[Finding]:
    """Find out whether studies can be written to a folder, which need not exist, and how much space there is."""
    from search.cluster.preflight import own_facts, space_findings

    if (remote := remote_results(folder)) is not None:
        yield from _store(remote)
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as scratch:
            locks = _locks_work(Path(scratch) / "lock")
    except OSError as error:
        found = f"{folder} must be writable, but got '{error.strerror}'"
        yield Finding("results", "problem", found, "Choose another --results DIR.")
        return
    there = own_facts(place)
    space = space_findings(there, place)
    for problem in space.problems:
        yield finding_of("disk", "problem", problem)
    for problem in space.warnings:
        yield finding_of("disk", "warning", problem)
    free = there["disks"][str(place)]["free"] / 2**30
    yield Finding("results", "ok", f"{folder} can be written, {free:.0f} GiB free")
    if locks:
        yield Finding("locks", "ok", f"files in {folder} can be locked")
    else:
        found = f"files in {folder} must be lockable, but locks have no effect there"
        yield Finding("locks", "warning", found, "Mount it with locks, or never run two commands on one study.")


def _locks_work(file: Path) -> bool:
    """Whether a second lock on a file is refused, as that of another command must be."""
    with file.open("w") as first, file.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def data(root: Path) -> Iterator[Finding]:
    """Find out whether a data set can be trained on: the data check, in short."""
    from cellseg.data.audit import check

    try:
        report = check(DataConfig(root=str(root.expanduser())))
    except UserError as error:
        yield from findings_of_error("data", error)
        return
    remedy = f"Run python -m cellseg.data.check {os.fspath(root)} for all."
    for text in report.errors[:SHOWN]:
        yield Finding("data", "problem", text, remedy)
    for text in report.warnings[:SHOWN]:
        yield Finding("data", "warning", text, remedy)
    counts = f"errors: {len(report.errors)}, warnings: {len(report.warnings)}"
    if report.statistics is not None:
        counts = f"{report.statistics.describe()[0]}; {counts}"
    yield Finding("data", "problem" if report.errors else "ok", counts)
