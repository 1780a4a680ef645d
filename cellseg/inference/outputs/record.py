"""The record of a folder of predictions: which images are finished, with which settings.

A line of JSON per finished image, appended when all of its files are there. A line that a kill cut off counts as
none, so its image is predicted again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cellseg.files import atomic_path

RECORD = "predicted.jsonl"


@dataclass(frozen=True)
class Finished:
    """A finished image."""

    settings: str
    """Hash of all that decides what the files hold: the model, the options, the formats."""
    path: str
    name: str
    bytes: int
    modified_ns: int
    """Size of the image file and time of its last change; another one was not predicted yet."""
    height: int
    width: int
    cells: int
    covered: int
    below: int
    """Cells whose score is below one half."""


class Record:
    """The record in a folder; read once, then appended to."""

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        self.settings = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
        self._file = out / RECORD
        self._finished = {(line.path, line.name): line for line in self._read()}

    def find(self, path: Path, name: str, files: Sequence[Path]) -> Finished | None:
        """Return what is recorded of an image; None if it, or one of its files, is new or has changed."""
        line = self._finished.get((str(path.resolve()), name))
        if line is None or not all(file.exists() for file in files):
            return None
        try:
            state = path.stat()
        except OSError:
            return None
        return line if (state.st_size, state.st_mtime_ns) == (line.bytes, line.modified_ns) else None

    def add(self, path: Path, name: str, **facts: int) -> Finished:
        """Record that an image's files are there."""
        state = path.stat()
        line = Finished(
            settings=self.settings,
            path=str(path.resolve()),
            name=name,
            bytes=state.st_size,
            modified_ns=state.st_mtime_ns,
            **facts,
        )
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        return line

    def start(self) -> None:
        """Write the lines that still hold, so that the file neither grows for ever nor ends in half a line."""
        with atomic_path(self._file) as temporary:
            lines = [json.dumps(asdict(line)) + "\n" for line in self._finished.values()]
            temporary.write_text("".join(lines), encoding="utf-8")

    def _read(self) -> list[Finished]:
        if not self._file.is_file():
            return []
        lines = []
        for text in self._file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = Finished(**json.loads(text))
            except (ValueError, TypeError):  # cut off, or of another version
                continue
            if line.settings == self.settings:
                lines.append(line)
        return lines
