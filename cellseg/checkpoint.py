"""Checkpoints: self-describing folders that hold all that prediction needs.

    checkpoint.json      the description: config, classes, metric, epoch, versions, data fingerprint, names of the files
    weights-0007.pt      the model's state dict; of a run with a name of its own: weights-0007-1f3a9c2e.pt
    training-0007.pt     what a resumed run needs besides the weights; only in checkpoints meant for resuming

``checkpoint.json`` is replaced last and in one step, and it names the files it belongs to, which are on the disk by
then. A process killed, or a machine that loses power, at any moment therefore leaves the old checkpoint or the new one.
Nothing in a folder needs unpickling of code.

An exported model is a checkpoint too: its weights are in the safetensors format, which other programs read.
"""

import hashlib
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from cellseg.config import TrialConfig
from cellseg.errors import Problem, UserError, raise_all
from cellseg.files import atomic_path, json_text, leads_outside, read_json, sweep
from cellseg.owners import Claim, SupersededError

FORMAT_VERSION = 2
"""1 had no category ids: they are the classes there."""
DESCRIPTION = "checkpoint.json"
BEST, LAST = "best", "last"
"""Checkpoint folders inside a run's folder: the best epoch for predicting, the last one for resuming."""
SAFETENSORS = ".safetensors"
MAX_DESCRIPTION_BYTES = 16 * 2**20
"""Size of the largest description that is read. One has a few thousand bytes, and a class more adds its name."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The content of ``checkpoint.json``."""

    config: dict[str, Any]
    """The effective TrialConfig, flat: settings that follow from the data have their values."""
    class_names: tuple[str, ...]
    """Name of class ``i + 1``."""
    category_ids: tuple[int, ...]
    """The number that the annotations gave class ``i + 1``, and that results are written with."""
    metric: str
    """Name of the metric that chose this epoch."""
    value: float | None
    """That metric at this epoch."""
    epoch: int
    """Epochs trained, from 1."""
    metrics: dict[str, float]
    """All validation metrics of this epoch."""
    parameters: int
    """Number of the model's parameters, frozen ones included."""
    data_fingerprint: str
    """Fingerprint of the packed data the model was trained on."""
    versions: dict[str, str]
    weights: str
    """File of the model's state dict, relative to the folder."""
    weights_blake2b: str
    """Hash of that file."""
    training: str | None
    """File of the training state, or None."""
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose description was read. Weights are loaded on demand."""

    folder: Path
    info: CheckpointInfo

    @property
    def config(self) -> TrialConfig:
        """Config that the model was trained with."""
        return TrialConfig.from_stored(self.info.config, where=str(self.folder / DESCRIPTION))

    def load_weights(self) -> dict[str, Tensor]:
        """Load the model's state dict onto the CPU and verify its hash."""
        path = self.folder / self.info.weights
        if path.is_file() and _hash(path) != self.info.weights_blake2b:
            raise UserError(
                f"{path}: must be the file that {DESCRIPTION} describes, but got another hash. Copy it again."
            )
        return _load_safetensors(path) if path.suffix == SAFETENSORS else load_tensors(path)

    def load_training(self) -> dict[str, Any] | None:
        """Load the training state, or None if this checkpoint was not kept for resuming."""
        return None if self.info.training is None else load_tensors(self.folder / self.info.training)


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    training: Mapping[str, Any] | None = None,
    twin: Path | None = None,
    claim: Claim | None = None,
    **description: Any,
) -> None:
    """Write or replace the checkpoint in ``folder``.

    Args:
        state: the model's state dict, on any device.
        training: tensors and plain values that a resumed run needs, or None.
        twin: a checkpoint folder that holds the same ``state`` already. Its file is shared instead of written again.
        claim: the caller's on the run; what a later owner writes stays as it is. None: nobody else can write there.
        description: the fields of :class:`CheckpointInfo` that are not about files and versions. Without
            ``category_ids`` the classes have the ids 1, 2, ....

    Raises:
        StorageError: storage failed; the checkpoint that was there is whole.
        SupersededError: the claim does not hold any more; the same.
    """
    description.setdefault("category_ids", _plain_ids(description["class_names"]))
    epoch = description["epoch"]
    name = f"{epoch:04d}" if claim is None else f"{epoch:04d}-{claim.name}"
    weights, resumable = folder / f"weights-{name}.pt", folder / f"training-{name}.pt"
    if claim is not None:
        claim.check()
    if twin is None:
        _save_tensors(weights, state)
        weights_blake2b = _hash(weights)
    else:
        written = open_checkpoint(twin)
        weights_blake2b = written.info.weights_blake2b
        _share(twin / written.info.weights, weights)
    if training is not None:
        _save_tensors(resumable, training)
    info = CheckpointInfo(
        **description,
        versions=versions(),
        weights=weights.name,
        weights_blake2b=weights_blake2b,
        training=resumable.name if training is not None else None,
    )
    try:
        with atomic_path(folder / DESCRIPTION) as temporary:
            temporary.write_text(json_text(asdict(info)), encoding="utf-8")
            if claim is not None:
                claim.check()  # writing the tensors may have taken long
    except SupersededError:
        weights.unlink(missing_ok=True)
        resumable.unlink(missing_ok=True)
        raise
    if claim is not None and not claim.holds:
        return  # what lies there may be the next owner's
    for path in folder.glob("*.pt"):
        if path.name not in {info.weights, info.training}:
            path.unlink(missing_ok=True)
    sweep(folder)


def has_checkpoint(folder: Path) -> bool:
    """Return whether ``folder`` holds a checkpoint."""
    return (folder / DESCRIPTION).is_file()


def find_checkpoint(folder: Path) -> Path:
    """Return ``folder``, or the best checkpoint in it where it is the folder of a training run."""
    best = folder / BEST
    return best if has_checkpoint(best) and not has_checkpoint(folder) else folder


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's description.

    Descriptions of format 1 are read too.

    Raises:
        UserError: no checkpoint there, one of another format, or one whose files would lie elsewhere.
    """
    folder = Path(folder)
    if not has_checkpoint(folder):
        raise UserError(f"{folder}: must be a checkpoint folder with a {DESCRIPTION}, but got none. Check the path.")
    content = read_json(folder / DESCRIPTION, MAX_DESCRIPTION_BYTES)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise UserError(
            f"{folder / DESCRIPTION}: format_version {FORMAT_VERSION} or older is needed, but got {version}. "
            "Use the version of cellseg that wrote it."
        )
    names = {field.name for field in fields(CheckpointInfo)}
    if version == 1:
        names.remove("category_ids")
    if content.keys() != names:
        wrong = ", ".join(sorted(content.keys() ^ names))
        raise UserError(f"{folder / DESCRIPTION}: must have exactly the keys it was written with, but {wrong} differ.")
    raise_all((*_type_problems(folder / DESCRIPTION, content), *_file_problems(folder / DESCRIPTION, content)))
    class_names = tuple(content["class_names"])
    category_ids = _plain_ids(class_names) if version == 1 else tuple(content["category_ids"])
    return Checkpoint(folder, CheckpointInfo(**content | {"class_names": class_names, "category_ids": category_ids}))


def _type_problems(path: Path, content: Mapping[str, Any]) -> Iterator[Problem]:
    """Report what is no mapping or list where the description has one."""
    for key in ("config", "metrics", "versions"):
        if not isinstance(content[key], dict):
            yield Problem(str(path), f"{key} must be a mapping", repr(content[key])[:80], "Copy the checkpoint again.")
    for key, kind, words in (("class_names", str, "names"), ("category_ids", int, "whole numbers")):
        value = content.get(key, [])  # older descriptions have no category ids
        if not isinstance(value, list) or any(type(each) is not kind for each in value):
            yield Problem(str(path), f"{key} must be a list of {words}", repr(value)[:80], "Copy the checkpoint again.")


def _file_problems(path: Path, content: Mapping[str, Any]) -> Iterator[Problem]:
    """Report names of files that are none, or lie elsewhere: a description from elsewhere may name any file."""
    for key in ("weights", "training"):
        name = content[key]
        if key == "training" and name is None:
            continue
        if not isinstance(name, str) or not name or Path(name).name != name or leads_outside(name):
            law = f"{key} must be the plain name of a file in the same folder"
            yield Problem(str(path), law, repr(name)[:80], "Copy the checkpoint folder again.")


def _plain_ids(class_names: Sequence[str]) -> tuple[int, ...]:
    """Return 1, 2, ...: the category ids of classes that have no others."""
    return tuple(range(1, len(class_names) + 1))


def find_weights(folder: Path) -> Path:
    """Find the file of the model's state dict in a checkpoint folder."""
    checkpoint = open_checkpoint(folder)
    return checkpoint.folder / checkpoint.info.weights


def load_tensors(path: Path) -> Any:
    """Load tensors and plain values that ``torch.save`` wrote, onto the CPU. Code in the file is not run.

    Raises:
        UserError: missing, damaged, or holding anything else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickle protocols: the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: must be a readable file of tensors, but got '{reason}'. Copy it again.") from error
    except Exception as error:  # the bytes of a damaged file may be any instruction, and fail in any way
        raise UserError(
            f"{path}: must be a file of tensors and plain values only (torch.save of a state dict), but got something "
            f"else or a damaged file ({type(error).__name__}). Save it again."
        ) from error


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a state dict in the safetensors format; the file's hash, as a description states it."""
    from safetensors.torch import save

    # Tensors that share memory, or are views with gaps, are no files of their own.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    path.write_bytes(save(own))  # save_file would let nobody else read it
    return _hash(path)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path}: must be a readable file of tensors, but got '{reason}'. Copy it again.") from error
    except SafetensorError as error:
        raise UserError(f"{path}: must be a whole file of tensors, but got '{error}'. Copy it again.") from error


def _save_tensors(path: Path, value: Mapping[str, Any]) -> None:
    # Into an open file: given a path, torch does not tell that the disk is full, only a RuntimeError about positions.
    # With a file, the system's error stands behind it.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(value, file)


def _share(written: Path, path: Path) -> None:
    """Let ``path`` be the file that ``written`` is, or a copy where the file system knows no links."""
    with atomic_path(path) as temporary:
        try:
            os.link(written, temporary)
        except OSError:
            shutil.copyfile(written, temporary)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
