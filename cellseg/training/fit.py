"""One training run: :func:`fit` trains, judges and yields a report an epoch."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.config import TrialConfig
from cellseg.errors import first_line
from cellseg.training.epoch_report import EpochReport, TrainingError

if TYPE_CHECKING:
    import torch

    from cellseg.data.packed import PackedDataset
    from cellseg.training.run import JudgedEpoch, TrainedEpoch, TrainingRun


def fit(
    config: TrialConfig,
    data: "PackedDataset",
    folder: Path,
    *,
    device: "torch.device | None" = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[EpochReport]:
    """Train as ``config`` says and yield an :class:`EpochReport` after each epoch.

    Before each report ``folder/last`` and, for a new best, ``folder/best`` are written. A folder that holds ``last``
    is resumed: on a CPU the numbers are those of an uninterrupted run. The generator may be closed at any report.
    Torch's global generator is seeded from (seed, epoch) at the start of each epoch.

    On a GPU the images that need most memory are tried first. Where memory runs out, then or later, half as many images
    at a time go through the network, from the last checkpoint on, while the effective batch stays. On a GPU an epoch
    also begins while the figures of the one before are worked out and its checkpoints written; that one is reported
    between two steps, when both are done.

    Args:
        on_step: called with (batches done, batches of the epoch).

    Raises:
        UserError: settings the data or the model cannot meet, or a folder of another run.
        TrainingError: a training or validation loss that is not finite, or too little memory for one image.
    """
    from cellseg.data.split import split
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
                hardest = describe_hardest(data, split(data.label_counts, config.data).training, config)
                where = "" if memory == "device" else " into the memory of this machine"
                raise TrainingError(
                    "out-of-memory",
                    f"images of {hardest} do not fit{where}, one at a time, of a batch of {config.train.batch_size} "
                    f"({first_line(error)})",
                ) from error
        # Behind the handler, where nothing holds the network any more that did not fit.
        free_memory()


def _attempt(
    config: TrialConfig,
    data: "PackedDataset",
    folder: Path,
    device: "torch.device | None",
    on_step: Callable[[int, int], None] | None,
    micro_batch: int,
) -> Iterator[EpochReport]:
    """The epochs that are left, with at most ``micro_batch`` images at a time in the network."""
    from cellseg.training.run import TrainingRun

    with closing(TrainingRun(config, data, folder, device, micro_batch)) as run:
        run.resume()
        if run.on_gpu and run.ending() is None:
            run.rehearse()
        yield from _epochs(run, on_step)


def _epochs(run: "TrainingRun", on_step: Callable[[int, int], None] | None) -> Iterator[EpochReport]:
    """Train and judge until the run is over."""
    waiting: _Waiting | None = None  # the epoch before, while its figures are worked out and its checkpoints written
    while run.ending() is None:
        run.epoch += 1
        started, paused = time.perf_counter(), 0.0
        failure: Exception | None = None
        try:
            for step in run.train_epoch():
                if on_step is not None:
                    on_step(*step)
                if waiting is not None and waiting.is_ready():
                    pause = time.perf_counter()
                    yield waiting.report()
                    paused += time.perf_counter() - pause
                    waiting = None
                    if run.ending() is not None:
                        return
        except Exception as error:
            failure = error
        seconds = time.perf_counter() - started - paused
        if waiting is not None:  # also where this epoch failed: the one before is done, and is not to be trained again
            yield waiting.report()
            waiting = None
            if run.ending() is not None:
                return
        if failure is not None:
            raise failure
        waiting = _Waiting(run, run.conclude(seconds))
        if not run.overlaps:
            waiting.judge()
        if not (run.overlaps or run.saves_beside):
            yield waiting.report()
            waiting = None


class _Waiting:
    """An epoch that was trained and is not reported yet."""

    def __init__(self, run: "TrainingRun", trained: "TrainedEpoch"):
        self.run = run
        self.trained = trained
        self.judged: JudgedEpoch | None = None

    def judge(self) -> "JudgedEpoch":
        """Wait for its figures and have its checkpoints written, if that was not done."""
        if self.judged is None:
            self.judged = self.run.judge(self.trained)
        return self.judged

    def is_ready(self) -> bool:
        """Whether its report is there without waiting; goes on with what is."""
        return self.trained.metrics.done() and self.judge().saved.done()

    def report(self) -> EpochReport:
        """Its report, for which this waits."""
        return self.run.report(self.judge())
