"""Files: written atomically, and read with messages that say what is wrong."""

import json
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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, on any error it vanishes.

    The name is replaced in one step, so a reader sees the old content or the new, never a part. Parent folders are
    made. Works for a file, or for a folder that the caller creates at the temporary path (an old folder is removed
    just before the new one takes its name).

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(
            f"{path}: the folder must be writable, but got '{error.strerror}'. Choose another place for the output."
        ) from error
    try:
        temporary = scratch / path.name
        yield temporary
        if temporary.is_dir() and path.is_dir():
            path.rename(scratch / ".replaced")
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: must be writable, but got '{error.strerror}'. Check free space and permissions."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a process killed inside :func:`atomic_path` left in ``folder``. Only for its one writer."""
    for scratch in Path(folder).glob(".*.*"):
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


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
        return parse(path.read_text(encoding="utf-8"))
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
