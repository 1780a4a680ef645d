"""Published weights: which file a model starts from, where it may lie, and how it is fetched once and for all.

A folder of weights is laid out as torch's own, ``FOLDER/hub/checkpoints/NAME``, so any of them can be ``$TORCH_HOME``.
A file's name holds the first eight digits of its SHA-256; to timm's names, ``REPOSITORY-DIGITS.safetensors``, they are
added.
"""

import fcntl
import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import timm.models
import torch.hub
import torchvision
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights, MaskRCNN_ResNet50_FPN_Weights

from cellseg.config.model import TIMM_PREFIX
from cellseg.model.resnets import ARCHITECTURES
from cellseg.model.timm_bodies import check_name

COCO = {"v1": MaskRCNN_ResNet50_FPN_Weights.COCO_V1, "v2": MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1}
"""Detector -> torchvision's weights of it."""
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""The names that a repository's weights may have, the preferred one first."""
TIMEOUT = 20.0
"""Seconds that a server may stay silent."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes that have come, and those of the whole file as far as the server says."""


@dataclass(frozen=True)
class Published:
    """A file of weights that torchvision or timm publish."""

    of: str
    """What it belongs to, such as ``ImageNet weights of resnet18``."""
    name: str
    """Its name in a folder of weights; of a file from a repository, the part before the digits of its hash."""
    urls: tuple[str, ...]
    """Addresses, the preferred one first: those of a repository differ in the form of the file."""
    repository: str | None = None
    """Repository of the Hugging Face hub, perhaps with ``@REVISION``. None: the address is all there is."""
    repository_files: tuple[str, ...] = ()
    """Names of the file there, one for each address."""
    megabytes: float | None = None
    """Size, where it is known beforehand."""

    @property
    def host(self) -> str:
        """The machine that the file comes from."""
        return urlparse(self.urls[0]).netloc


def published_weights(weights: str, backbone: str, detector: str) -> Published | None:
    """Return the file that a model with these settings starts from; None for ``none`` and for a path.

    Raises:
        UserError: timm has no such network, or no weights of it.
    """
    if weights == "coco":
        return _of_torchvision(f"COCO weights of detector {detector}", COCO[detector])
    if weights != "imagenet":
        return None
    name = backbone.removeprefix(TIMM_PREFIX)
    of = f"ImageNet weights of {backbone}"
    if name in ARCHITECTURES and name == backbone:
        return _of_torchvision(of, torchvision.models.get_model_weights(name)["IMAGENET1K_V1"])
    check_name(name, pretrained=True)
    return _of_timm(of, timm.models.get_pretrained_cfg(name))


def cache_folder() -> Path:
    """Return torch's folder of weights: ``$TORCH_HOME``, or ``~/.cache/torch``."""
    return Path(torch.hub.get_dir()).parent


def find_published(file: Published, folder: Path | None = None) -> Path | None:
    """Find the file in ``folder``, torch's or the hub's cache, in this order; None where it is in none of them."""
    for place in (folder, cache_folder()):
        if place is not None and (there := _in_folder(file, place)) is not None:
            return there
    if file.repository is None:
        return None
    repository, _, revision = file.repository.partition("@")
    for name in file.repository_files:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    return None


def obtain(file: Published, folder: Path | None = None) -> Path:
    """Find the file as :func:`find_published` does, or fetch it into torch's cache.

    Raises:
        OSError: it cannot be had.
    """
    return find_published(file, folder) or fetch(file, cache_folder())


def fetch(file: Published, folder: Path, on_progress: Progress = lambda done, total: None) -> Path:
    """Download the file into ``folder`` and check its hash. Processes that want the same file wait for the first.

    Raises:
        OSError: no network, no such file, a broken transfer, another hash, or a folder that cannot be written.
    """
    place = _checkpoints(folder)
    place.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(place / f".{file.name}.lock"):
        there = _in_folder(file, folder)
        if there is not None and damage(there) is None:
            return there
        if file.repository is not None and huggingface_hub.constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        for url in file.urls:
            try:
                return _download(file, url, place, on_progress)
            except urllib.error.HTTPError as error:
                if error.code != 404 or url == file.urls[-1]:
                    raise OSError(f"the server answers {error.code} {error.reason}") from error
    raise AssertionError("a file has an address")


def copy_to(file: Published, found: Path, folder: Path) -> Path:
    """Copy a file that was found into another folder of weights, unless it is there; its place there.

    Raises:
        OSError: the folder cannot be written, or the copy is damaged.
    """
    there = _in_folder(file, folder)
    if there is not None and damage(there) is None:
        return there
    place = _checkpoints(folder)
    place.mkdir(parents=True, exist_ok=True)
    with _partial(place) as partial:
        shutil.copyfile(found, partial)
        return _take_name(file, partial, _sha256(partial), found.suffix, place)


def damage(path: Path) -> str | None:
    """Say how the content of a file contradicts the hash in its name; None if it does not, or the name holds none."""
    real = path.resolve()
    blob = re.fullmatch(r"[0-9a-f]{64}", real.name)  # the hub's cache: the file is a link to its hash
    named = blob[0] if blob else _digits(path.name)
    if named is None:
        return None
    found = _sha256(real)
    return None if found.startswith(named) else f"its SHA-256 begins with {found[: min(len(named), 8)]}"


def _of_torchvision(of: str, entry: Any) -> Published:
    size = entry.meta.get("_file_size") if hasattr(entry, "meta") else None
    return Published(of, Path(urlparse(entry.url).path).name, (entry.url,), megabytes=size)


def _of_timm(of: str, entry: Any) -> Published:
    if not entry.hf_hub_id:
        url = entry.url if isinstance(entry.url, str) else entry.url[0]
        return Published(of, Path(urlparse(url).path).name, (url,))
    repository, _, revision = entry.hf_hub_id.partition("@")
    files = (entry.hf_hub_filename,) if entry.hf_hub_filename else HUB_FILES
    urls = tuple(huggingface_hub.hf_hub_url(repository, name, revision=revision or None) for name in files)
    return Published(of, entry.hf_hub_id.replace("/", "--").replace("@", "--"), urls, entry.hf_hub_id, files)


def _checkpoints(folder: Path) -> Path:
    return folder / "hub" / "checkpoints"


def _in_folder(file: Published, folder: Path) -> Path | None:
    place = _checkpoints(folder)
    if file.repository is None:
        return place / file.name if (place / file.name).is_file() else None
    pattern = re.compile(re.escape(file.name) + r"-[0-9a-f]{8}\.\w+")
    try:
        found = sorted(path for path in place.iterdir() if pattern.fullmatch(path.name) and path.is_file())
    except OSError:
        return None
    return found[-1] if found else None


def _digits(name: str) -> str | None:
    """Find the digits of the hash in a file's name, as torch writes them: before the suffix, after the last dash."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return match[1] if match else None


def _download(file: Published, url: str, place: Path, on_progress: Progress) -> Path:
    linked = _LinkedHash()
    request = urllib.request.Request(url, headers={"User-Agent": "cellseg-search"})
    with _partial(place) as partial:
        digest = hashlib.sha256()
        try:
            with (
                urllib.request.build_opener(linked).open(request, timeout=TIMEOUT) as answer,
                partial.open("wb") as out,
            ):
                length = answer.headers.get("Content-Length", "")
                total = int(length) if length.isdecimal() else None
                done = 0
                while chunk := answer.read(2**20):
                    out.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    on_progress(done, total)
        except http.client.HTTPException as error:
            raise OSError(f"the transfer broke off ({type(error).__name__})") from error
        if total is not None and done != total:
            raise OSError(f"the transfer broke off after {done:,} of {total:,} bytes")
        found = digest.hexdigest()
        if linked.sha256 is not None and linked.sha256 != found:
            raise OSError(f"its SHA-256 should be {linked.sha256}, but is {found}")
        return _take_name(file, partial, found, Path(urlparse(url).path).suffix, place)


def _take_name(file: Published, partial: Path, sha256: str, suffix: str, place: Path) -> Path:
    """Give a complete file its name.

    Raises:
        OSError: its hash is not that of its name.
    """
    if file.repository is not None:
        path = place / f"{file.name}-{sha256[:8]}{suffix}"
    else:
        path = place / file.name
        digits = _digits(file.name)
        if digits is not None and not sha256.startswith(digits):
            raise OSError(f"its SHA-256 should begin with {digits}, but is {sha256}")
    partial.replace(path)
    return path


class _LinkedHash(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the SHA-256 that the hub states where it sends its clients to a store."""

    sha256: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        stated = (headers.get("X-Linked-Etag") or "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", stated):
            self.sha256 = stated
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _partial(place: Path) -> Iterator[Path]:
    """A name in ``place`` for a file that is not complete; what is left there in the end is removed."""
    path = place / f".{uuid.uuid4().hex}.partial"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait for other processes. A file system without locks costs a second download, no more: names are taken whole."""
    with lock.open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
