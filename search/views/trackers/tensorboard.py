"""TensorBoard's event files, one folder for each trial: ``results/<study>/tensorboard/t0007/``.

They are a copy of the tables. The run of a trial that goes on is written anew from there, so no point is there twice.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow
from search.views.trackers.tracker import EndedList, flat_params, remove_folder, run_name, scalars

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FOLDER = "tensorboard"
FLUSH_SECONDS = 10
"""What was added is in the file after so long."""


class TensorBoard:
    """Writes event files, without TensorBoard itself."""

    def __init__(self, store: StudyStore):
        self._folder, self._metric = store.folder / FOLDER, store.metric
        self._list = EndedList(self._folder)
        self._writers: dict[int, SummaryWriter] = {}

    def ended(self) -> set[int]:
        return self._list.read()

    def begin(self, row: TrialRow) -> int:
        from tensorboardX import SummaryWriter

        folder = self._run_folder(row.number)
        remove_folder(folder)
        self._writers[row.number] = SummaryWriter(str(folder), flush_secs=FLUSH_SECONDS, write_to_disk=True)
        return 0

    def epoch(self, row: EpochRow, when: float) -> None:
        for name, value in scalars(row):
            self._writers[row.trial].add_scalar(name, value, row.epoch, walltime=when)

    def end(self, row: TrialRow) -> None:
        from tensorboardX.summary import hparams

        writer = self._writers.pop(row.number)
        if row.metric is not None:
            writer.add_scalar(f"best/{self._metric}", row.metric, row.best_epoch)
        # Without a summary of the experiment TensorBoard makes the table from all runs. One of each run would hide
        # what other runs have: keys of a space may be conditional.
        _, start, end = hparams(flat_params(row) | {"state": row.state.lower()}, {})
        writer.file_writer.add_summary(start)
        writer.file_writer.add_summary(end)
        writer.close()
        self._list.add(row.number)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _run_folder(self, number: int) -> Path:
        return self._folder / run_name(number)


def describe(store: StudyStore) -> str:
    """Say where the files are, and how to look at them."""
    return f"TensorBoard files: tensorboard --logdir {store.folder / FOLDER}"
