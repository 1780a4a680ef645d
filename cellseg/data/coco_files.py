"""COCO annotation files in a folder: which there are, and which of them are splits of one data set."""

import re
from dataclasses import dataclass
from pathlib import Path

from cellseg.data.files_below import FilesBelow, mentions
from cellseg.data.source import relative_name
from cellseg.errors import UserError
from cellseg.files import read_json

KEYS = ("images", "annotations", "categories")
_ROLES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""A word in the name of a file, or of its folder -> the split that it is."""
SHOWN = 10
"""Candidates that a message names at most."""


@dataclass(frozen=True)
class AnnotationFiles:
    """The annotation files of a data set."""

    training: tuple[Path, ...]
    """One, or those of the splits for training and validation, in this order."""
    test: Path | None = None
    """The split whose images are test images."""


def find_annotations(files: FilesBelow) -> list[Path]:
    """Find the COCO annotation files in a folder and below, sorted."""
    found = []
    for path in files.with_suffix(".json"):
        if not mentions(path, *KEYS):
            continue
        try:
            content = read_json(path)
        except UserError:
            continue  # some other file; the chosen one is read again, and its problems are reported
        if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS):
            found.append(path)
    return found


def choose_annotations(root: Path, annotations: str | None, found: list[Path] | None = None) -> AnnotationFiles:
    """Choose the annotation file that is named, the only one there is, directly in ``root`` or anywhere below, or those
    of the splits of one data set.

    Args:
        found: what :func:`find_annotations` found; None: look now.

    Raises:
        UserError: none, several between which no rule decides, or only one that is for testing by its name.
    """
    if annotations is not None:
        return AnnotationFiles((root / annotations,))
    found = find_annotations(FilesBelow(root)) if found is None else found
    if len(found) == 1 and _role(found[0], root) == "test":
        raise UserError(
            f"{root}: must hold annotations to train on, but got only {relative_name(found[0], root)}, which its name "
            "sets apart for testing. To train on it, name it with --annotations FILE (data.annotations in a space)."
        )
    beside = [path for path in found if path.parent == root]
    is_meant = len(beside) == 1 and _role(beside[0], root) != "test"
    if len(found) == 1 or is_meant:  # what lies in the folder itself is meant, whatever lies deeper
        return AnnotationFiles(((beside or found)[0],))
    if splits := _splits(found, root):
        return splits
    names = [relative_name(path, root) for path in found]
    listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    raise UserError(
        f"{root}: must hold one COCO annotation JSON (a mapping with images, annotations and categories), or one for "
        f"each of the splits train, valid and test, but got {listed or 'none'}. Name it with --annotations FILE "
        "(data.annotations in a space)."
    )


def _splits(found: list[Path], root: Path) -> AnnotationFiles | None:
    """Read the files as splits; None unless each is another split and one of them is for training."""
    # COCO's own folders hold key points and captions beside the instances.
    instances = [path for path in found if path.stem.lower().startswith("instances")]
    role_of = {path: _role(path, root) for path in instances or found}
    of_role = {role: path for path, role in role_of.items()}
    if None in of_role or len(of_role) != len(role_of) or "train" not in of_role:
        return None
    training = tuple(of_role[role] for role in ("train", "valid") if role in of_role)
    return AnnotationFiles(training, of_role.get("test"))


def _role(path: Path, root: Path) -> str | None:
    """The split that a file's name says, or else its folder's nearest to it."""
    roles = {_ROLES[word] for word in re.findall(r"[a-z]+", path.stem.lower()) if word in _ROLES}
    return roles.pop() if len(roles) == 1 else split_of(path, root)


def split_of(path: Path, root: Path) -> str | None:
    """The split (train, valid or test) that the nearest folder above a file is named after; None where none is."""
    names = reversed(path.relative_to(root).parent.parts)
    return next((_ROLES[name.lower()] for name in names if name.lower() in _ROLES), None)
