"""Checkpoints of a trial on the machine's own disk, copied to the study's store while the trial trains on.

An epoch ends when its checkpoints are on the local disk. One copy at a time is on its way; when it has arrived, the
latest state is next, and states in between are left out. A trial that loses its machine goes on from what arrived.
"""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from search.storage.fetch import DESCRIPTION, trial_prefix
from search.storage.remote import Remote

NAMES = ("best", "last")
"""The checkpoints of a trial, in the order in which they are written."""
_NEXT, _CURRENT = ".next", ".current"
"""Folders of links to the files that are to be copied, and that are being copied."""


class CheckpointCopy:
    """Copies the checkpoints of one trial.

    Args:
        study: where the study is.
        number: the trial's.
        folder: local folder of the trial's checkpoints.
    """

    def __init__(self, study: Remote, number: int, folder: Path):
        self._remote = study.below(*trial_prefix(number).split("/"))
        self._folder = folder
        self._changed = threading.Condition()
        self._is_waiting = self._is_copying = False
        self._error: Exception | None = None
        self._descriptions: dict[str, bytes] = {}  # of the checkpoints that have arrived
        self._thread: threading.Thread | None = None

    def fetch(self) -> None:
        """Make the local folder what has arrived. Raises StorageError."""
        shutil.rmtree(self._folder, ignore_errors=True)
        sizes = self._remote.sizes()
        for name in sorted(sizes, key=lambda name: (Path(name).name == DESCRIPTION, name)):
            self._remote.get(name, self._folder / name)

    def start(self) -> None:
        """Let the checkpoints as they are now be copied, as soon as the former copy has arrived.

        Raises:
            StorageError: the former copy failed.
        """
        staged = self._folder / f"{_NEXT}.new"
        shutil.rmtree(staged, ignore_errors=True)
        for name in NAMES:
            if (self._folder / name / DESCRIPTION).exists():
                description = json.loads((self._folder / name / DESCRIPTION).read_bytes())
                for file in (DESCRIPTION, description["weights"], description["training"]):
                    if file is not None:
                        _link(self._folder / name / file, staged / name / file)
        with self._changed:
            self._raise()
            shutil.rmtree(self._folder / _NEXT, ignore_errors=True)
            if not staged.exists():
                return
            staged.rename(self._folder / _NEXT)
            self._is_waiting = True
            if not self._is_copying:
                self._is_copying = True
                self._thread = threading.Thread(target=self._work, name="checkpoint copy", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Wait until the latest state has arrived.

        Raises:
            StorageError: a copy failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_copying)
            self._raise()

    def close(self) -> None:
        """Wait until the latest state has arrived or a copy has failed, and remove the local files."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_copying)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._is_waiting:
                    self._is_copying = False
                    self._changed.notify_all()
                    return
                self._is_waiting = False
                current = self._folder / _CURRENT
                shutil.rmtree(current, ignore_errors=True)
                (self._folder / _NEXT).rename(current)
            try:
                self._copy(current)
            except Exception as error:
                with self._changed:
                    self._error = error
                    self._is_waiting = self._is_copying = False
                    self._changed.notify_all()
                return

    def _copy(self, current: Path) -> None:
        """Copy one state: each checkpoint's description after its files, then remove what no description names."""
        copied: dict[int, str] = {}  # by inode: best and last may share their weights
        for name in NAMES:
            if not (current / name).is_dir():
                continue
            text = (current / name / DESCRIPTION).read_bytes()
            description: dict[str, Any] = json.loads(text)
            files = [description["weights"], *filter(None, [description["training"]])]
            if self._descriptions.get(name) != text:
                for file in files:
                    path, target = current / name / file, f"{name}/{file}"
                    inode = path.stat().st_ino
                    if inode in copied:
                        self._remote.copy(copied[inode], target)
                    else:
                        self._remote.put(path, target)
                    copied[inode] = target
                self._remote.put_bytes(text, f"{name}/{DESCRIPTION}")
                self._descriptions[name] = text
                kept = {f"{name}/{file}" for file in (DESCRIPTION, *files)}
                self._remote.remove(self._remote.sizes(name).keys() - kept)
            else:
                copied |= {(current / name / file).stat().st_ino: f"{name}/{file}" for file in files}
        shutil.rmtree(current, ignore_errors=True)


def _link(path: Path, other: Path) -> None:
    """Keep a file as it is, whatever takes its name."""
    other.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copyfile(path, other)
