"""The loop of a training run: :func:`fit` trains, validates and yields one report per epoch."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.config import TrialConfig
from cellseg.errors import first_line
from cellseg.training.epoch_report import EpochReport, TrainingError

if TYPE_CHECKING:
    import torch

    from cellseg.data.packed import PackedDataset
    from cellseg.training.run import JudgedEpoch, TrainingRun


def fit(
    config: TrialConfig,
    data: "PackedDataset",
    folder: Path,
    *,
    device: "torch.device | None" = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Generator[EpochReport, None, None]:
    """Train as ``config`` says and yield an :class:`EpochReport` after each epoch.

    Before each report it writes ``folder/last`` and, for a new best, ``folder/best``. A folder with ``last`` is
    resumed; on a CPU the results equal those of an uninterrupted run. The generator may be closed at any report.
    Torch's global generator is seeded from (seed, epoch) at the start of each epoch.

    On a GPU, the images that need most memory are tried first. If memory runs out, then or later, training continues
    from the last checkpoint with half as many images at a time; the effective batch size stays. On a GPU, an epoch may
    begin while the metrics of the previous one are computed and its checkpoints written; the report of the previous
    epoch follows between two steps, when both are done.

    Args:
        on_step: called with (batches done, batches of the epoch).

    Of several processes that train in one folder, the one that began last goes on.

    Raises:
        SupersededError: another process has begun to train in the folder.
        UserError: settings the data or the model cannot meet, or a folder of another run.
        TrainingError: a training or validation loss, or the gradients of many steps in a row, that are not finite, or
            too little memory for one image.
    """
    from cellseg.device import exhausted_memory, free_memory
    from cellseg.training.memory import describe_hardest

    micro_batch = config.train.batch_size
    while True:
        try:
            yield from _attempt(config, data, folder, device, on_step, micro_batch)
            return
        except Exception as error:
            memory = exhausted_memory(error)
            if memory is None:
                raise
            if memory == "host" and config.train.workers:
                config = config.replace(train__workers=0)  # loader processes hold batches of their own
            elif micro_batch > 1:
                micro_batch = (micro_batch + 1) // 2
            else:
                hardest = describe_hardest(data, data.split(config.data).training, config)
                where = "" if memory == "device" else " into the memory of this machine"
                raise TrainingError(
                    "out-of-memory",
                    f"images of {hardest} do not fit{where}, even one at a time, from a batch of "
                    f"{config.train.batch_size} ({first_line(error)})",
                ) from error
        # Outside the handler, where nothing refers to the failed network any more.
        free_memory()


def _attempt(
    config: TrialConfig,
    data: "PackedDataset",
    folder: Path,
    device: "torch.device | None",
    on_step: Callable[[int, int], None] | None,
    micro_batch: int,
) -> Iterator[EpochReport]:
    """Run the remaining epochs with at most ``micro_batch`` images at a time in the network."""
    from cellseg.training.run import TrainingRun

    with closing(TrainingRun(config, data, folder, device, micro_batch)) as run:
        run.resume()
        if run.on_gpu and run.ending() is None:
            run.rehearse()
        yield from _epochs(run, on_step)


def _epochs(run: "TrainingRun", on_step: Callable[[int, int], None] | None) -> Iterator[EpochReport]:
    """Train, judge and report one epoch after the other until the run is over.

    An epoch is reported when its metrics are known and its checkpoints are on disk. Until then the next one trains, if
    the two may overlap.
    """
    waiting: _Waiting | None = None
    while True:
        training = _EpochTraining(run, on_step)
        if waiting is not None:
            while waiting.overlaps and not waiting.is_ready() and run.ending() is None and training.step():
                pass
            yield waiting.report()
        if run.ending() is not None:
            return
        training.finish()
        waiting = _Waiting(run, training.seconds)


class _EpochTraining:
    """The training of the next epoch, a batch at a time."""

    def __init__(self, run: "TrainingRun", on_step: Callable[[int, int], None] | None):
        self.run = run
        self.on_step = on_step
        self.seconds = 0.0
        """Wall-clock time of all steps, without the time between them."""
        self._steps: Iterator[tuple[int, int]] | None = None
        self._failure: Exception | None = None

    def step(self) -> bool:
        """Train on the next batch; False if none is left. :meth:`finish` raises any error: the previous epoch must be
        reported first."""
        started = time.perf_counter()
        if self._steps is None:
            self.run.epoch += 1
            self._steps = self.run.train_epoch()
        try:
            progress = next(self._steps, None)
            if progress is not None and self.on_step is not None:
                self.on_step(*progress)
        except Exception as error:
            self._failure, progress = error, None
        self.seconds += time.perf_counter() - started
        return progress is not None

    def finish(self) -> None:
        """Train on all remaining batches, and raise the error of any batch."""
        while self._failure is None and self.step():
            pass
        if self._failure is not None:
            raise self._failure


class _Waiting:
    """A trained epoch that is not reported yet."""

    def __init__(self, run: "TrainingRun", seconds: float):
        """``seconds``: the time that its training took."""
        self.run = run
        self.overlaps = run.overlaps or run.saves_beside
        """Whether the next epoch may begin before this one is reported."""
        self._trained = run.conclude(seconds)
        self._judged: JudgedEpoch | None = None
        if not run.overlaps:
            self._judge()

    def is_ready(self) -> bool:
        """Whether the report is ready. Starts to write the checkpoints as soon as the metrics are known."""
        return self._trained.metrics.done() and self._judge().saved.done()

    def report(self) -> EpochReport:
        """Wait for the report and return it."""
        return self.run.report(self._judge())

    def _judge(self) -> "JudgedEpoch":
        """Wait for the metrics and start to write the checkpoints, once."""
        if self._judged is None:
            self._judged = self.run.judge(self._trained)
        return self._judged
