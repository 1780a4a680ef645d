"""Files: written atomically and durably, and read with messages that say what is wrong."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from cellseg.errors import UserError

YAMLError = yaml.YAMLError

_STORAGE_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of the quota",
    errno.EROFS: "Mount it for writing",
    errno.EIO: "Check the disk or the mounted file system",
    errno.ESTALE: "Mount the file system again",
    errno.ENOTCONN: "Mount the file system again",  # of a FUSE mount whose process died
}
"""What the system says when storage fails, whoever uses it -> what to do."""
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What fsync says on a file system that has none."""


class StorageError(UserError):
    """Storage that failed: full, over its quota, read-only, broken or no longer mounted. What was being written is as
    it was before; once the cause is fixed, it can be written again."""


def is_storage_error(error: BaseException) -> bool:
    """Whether storage failed and nobody else: ``error``, or an error behind it, is one of the system's for that.

    Libraries wrap them: torch raises a RuntimeError about positions in the file.
    """
    return _storage_cause(error) is not None


def storage_error(error: BaseException, path: Path | None = None) -> StorageError:
    """Describe an error of storage (:func:`is_storage_error`) to people.

    Args:
        path: what was to be written. None: what the error names.
    """
    cause = _storage_cause(error)
    assert cause is not None, error
    if isinstance(cause, StorageError):
        return cause
    assert cause.errno is not None
    place = f"{path}: must be writable" if path is not None else f"{cause.filename or 'storage'}: must be usable"
    remedy = _STORAGE_REMEDIES[cause.errno]
    return StorageError(f"{place}, but got '{os.strerror(cause.errno)}'. {remedy}, then run the same command again.")


def _storage_cause(error: BaseException | None) -> StorageError | OSError | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _STORAGE_REMEDIES):
            return error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


@contextmanager
def atomic_path(path: Path, backup: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, on any error it vanishes.

    The name is replaced in one step, so a reader sees the old content or the new, never a part. Parent folders are
    made. Works for a file, or for a folder that the caller creates at the temporary path (an old folder is removed
    just before the new one takes its name).

    A file is durable: its content is on the disk before it takes the name, and the name before the block ends. So a
    machine that loses power has the old file or the new one too, and never an empty one. Folders are not: what is in
    them can be made again.

    Args:
        backup: a name on the same file system that the old file gets, in place of an older one there.

    Raises:
        StorageError: storage failed, see :func:`is_storage_error`.
        UserError: the folder cannot be written.
    """
    path = Path(path)
    try:
        _make_folder(path.parent)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        if is_storage_error(error):
            raise storage_error(error, path) from error
        raise UserError(
            f"{path}: the folder must be writable, but got '{error.strerror}'. Choose another place for the output."
        ) from error
    try:
        temporary = scratch / path.name
        yield temporary
        if temporary.is_dir() and path.is_dir():
            path.rename(scratch / ".replaced")
        if temporary.is_file():
            _sync(temporary)
        if backup is not None and path.exists():
            _keep(path, backup, scratch / ".former")
        temporary.replace(path)
        _sync(path.parent)
    except UserError:
        raise
    except Exception as error:
        if is_storage_error(error):
            raise storage_error(error, path) from error
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{path}: must be writable, but got '{error.strerror}'. Check permissions.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    """Make a folder with its parents; durable as what will be in it."""
    if folder.is_dir():
        return
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        _sync(place.parent)


def _keep(path: Path, backup: Path, link: Path) -> None:
    """Let ``backup`` be the file that ``path`` is now. There is always a whole file at either name."""
    _make_folder(backup.parent)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        shutil.copyfile(path, link)
    link.replace(backup)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk, where the file system can say so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written, but not listed
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what a process killed inside :func:`atomic_path` left in ``folder``. Only for its one writer."""
    for scratch in Path(folder).glob(".*.*"):
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, value: Any, backup: Path | None = None) -> None:
    """Write ``value`` by :func:`atomic_path` as :func:`json_text`."""
    text = json_text(value)
    with atomic_path(path, backup) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON. NaN and infinity are refused: they are not JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def leads_outside(name: str) -> bool:
    """Say whether a file's name, as data give it, may lead out of its folder: absolute, or with a part ``..``.

    Both kinds of slashes separate parts, so that data are judged alike on every system. Symbolic links are not
    followed: those inside a folder are how its owner laid it out.
    """
    windows = PureWindowsPath(name)
    return "\0" in name or ".." in windows.parts or bool(windows.root) or windows.is_absolute()


def read_json(path: Path, max_bytes: int | None = None) -> Any:
    """Parse a JSON file.

    Args:
        max_bytes: size of the largest file that is read. None: any.

    Raises:
        UserError: missing, unreadable, too large, nested too deeply, or not JSON.
    """
    path = Path(path)
    if max_bytes is not None and path.is_file() and (size := path.stat().st_size) > max_bytes:
        raise UserError(f"{path}: must have at most {max_bytes:,} bytes, but got {size:,}. Is it the right file?")
    return _parse(path, json.loads, "JSON")


def read_yaml(path: Path) -> Any:
    """Parse a YAML file safely.

    Unlike plain ``yaml.safe_load``, it reads ``1e-3`` as a float (YAML 1.1: as text) and refuses a key that occurs
    twice in one mapping (plain YAML keeps the last).

    Raises:
        UserError: missing, unreadable, not YAML, nested too deeply, or a repeated key.
    """
    return _parse(path, parse_yaml, "YAML")


def parse_yaml(text: str) -> Any:
    """Parse a YAML text by the rules of :func:`read_yaml`; raises :class:`YAMLError`."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except ValueError as error:  # a value that looks like a date or is tagged as a number, but is none
        raise YAMLError(str(error)) from error
    except RecursionError as error:
        raise YAMLError("it is nested too deeply") from error


def _parse(path: Path, parse: Callable[[str], Any], kind: str) -> Any:
    path = Path(path)
    try:
        return parse(path.read_text(encoding="utf-8-sig"))  # some editors on Windows mark UTF-8
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file must exist, but got nothing at that path. Check the spelling.") from error
    except OSError as error:
        raise UserError(f"{path}: must be a readable file, but got '{error.strerror}'.") from error
    except RecursionError as error:
        raise UserError(
            f"{path}: must be nested less deeply, but got too many levels. Is it the right file?"
        ) from error
    except (ValueError, yaml.YAMLError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        detail = " ".join(str(error).split())
        raise UserError(f"{path}: must be valid {kind}, but got: {detail}.") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-3`` as a number and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class reports it
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"the key '{key}' appears twice in one mapping, the second time in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
