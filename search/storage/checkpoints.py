"""The checkpoints of a study: where they are, and which stay."""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from search.storage.fetch import DESCRIPTION, fetch_checkpoint, trial_prefix
from search.storage.remote import Remote
from search.storage.tables import UNFINISHED, TrialRow

_BEST = "best"


class Checkpoints:
    """The folders of trials' checkpoints, below a study's.

    Args:
        study: where the study is, if in an object store: then what is local is a copy.
    """

    def __init__(self, folder: Path, study: Remote | None = None):
        self._folder = folder
        self._study = study
        self._deleted: set[int] = set()  # for good: ended trials
        self._has_looked = False

    def folder(self, number: int) -> Path:
        """Return where the checkpoints of a trial are, if it has any. The folder need not exist."""
        return self._folder / f"t{number:04d}"

    def has(self, number: int, name: str) -> bool:
        """Return whether a trial has the checkpoint of that name."""
        if self._study is not None:
            return self._study.exists(f"{trial_prefix(number)}/{name}/{DESCRIPTION}")
        return (self.folder(number) / name / DESCRIPTION).is_file()

    def fetch(self, number: int, name: str) -> Path:
        """Return the folder of a checkpoint, with its files if there is one."""
        folder = self.folder(number) / name
        if self._study is not None:
            fetch_checkpoint(self._study, number, name, folder)
        return folder

    def size(self, number: int) -> int:
        """Return the bytes that a trial's checkpoints take; 0 if it has none, or they are being replaced."""
        try:
            files = [path.stat() for path in self.folder(number).glob("*/*") if path.is_file()]
        except OSError:
            return 0
        return sum({stat.st_ino: stat.st_size for stat in files}.values())  # best and last may share their weights

    def clear(self, number: int) -> None:
        """Delete the checkpoints of a trial, if there are any."""
        self._remove(number)

    def keep(self, best: Collection[int], rows: Iterable[TrialRow]) -> None:
        """Keep the weights of the ``best`` trials and the resumable state of unfinished ones; delete all else.

        Args:
            rows: all trials.
        """
        rows = list(rows)
        if self._study is not None and not self._has_looked:  # once, instead of a question for each trial
            self._has_looked = True
            there = {int(name.removeprefix("t")) for name in self._study.below("checkpoints").folders()}
            self._deleted |= {row.number for row in rows if row.state not in UNFINISHED} - there
        for row in rows:
            if row.state in UNFINISHED or row.number in self._deleted:
                continue
            if row.number in best:
                # Of one in an object store, its process may still copy: sweep() comes when none does.
                if self._study is None:
                    self._keep_best(row.number)
            else:
                self._remove(row.number)
                self._deleted.add(row.number)

    def sweep(self, best: Collection[int], rows: Iterable[TrialRow]) -> None:
        """Delete from an object store what ended trials have beyond what :meth:`keep` keeps; no trial runs."""
        if self._study is None:
            return
        states = {row.number: row.state for row in rows}
        for folder in self._study.below("checkpoints").folders():
            number = int(folder.removeprefix("t"))
            if states.get(number, "RUNNING") not in UNFINISHED:
                names = self._study.sizes(trial_prefix(number))
                kept = f"{trial_prefix(number)}/{_BEST}/"
                self._study.remove([name for name in names if number not in best or not name.startswith(kept)])

    def _keep_best(self, number: int) -> None:
        """Delete of a trial's checkpoints all but the weights of its best epoch."""
        shutil.rmtree(self.folder(number) / "last", ignore_errors=True)

    def _remove(self, number: int) -> None:
        """Delete the checkpoints of a trial. A process on this machine that copies them removes its files itself."""
        if self._study is not None:
            self._study.remove_folder(trial_prefix(number))
        else:
            shutil.rmtree(self.folder(number), ignore_errors=True)
