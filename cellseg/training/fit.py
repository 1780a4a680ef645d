"""One training run: :func:`fit` trains, judges and yields a report an epoch."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.config import TrialConfig
from cellseg.training.epoch_report import EpochReport, TrainingError

if TYPE_CHECKING:
    import torch

    from cellseg.data.packed import PackedDataset
    from cellseg.training.run import TrainedEpoch, TrainingRun


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
    also begins while the figures of the one before are worked out; that one is reported between two steps.

    Args:
        on_step: called with (batches done, batches of the epoch).

    Raises:
        UserError: settings the data or the model cannot meet, or a folder of another run.
        TrainingError: a training or validation loss, or the gradients of many steps in a row, that are not finite, or
            too little memory for one image.
    """
    import torch

    from cellseg.data.split import split
    from cellseg.training.memory import describe_hardest, is_out_of_memory

    micro_batch = config.train.batch_size
    while True:
        try:
            yield from _attempt(config, data, folder, device, on_step, micro_batch)
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if micro_batch == 1:
                hardest = describe_hardest(data, split(data.label_counts, config.data).training, config)
                raise TrainingError(
                    "out-of-memory",
                    f"images of {hardest} do not fit, one at a time, of a batch of {config.train.batch_size} "
                    f"({str(error).splitlines()[0]})",
                ) from error
        # Behind the handler, where nothing holds the network any more that did not fit.
        micro_batch = (micro_batch + 1) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
    waiting: TrainedEpoch | None = None  # the epoch before, while its figures are worked out
    while run.ending() is None:
        run.epoch += 1
        started, paused = time.perf_counter(), 0.0
        for step in run.train_epoch():
            if on_step is not None:
                on_step(*step)
            if waiting is not None and waiting.metrics.done():
                pause = time.perf_counter()
                yield run.remember(waiting)
                paused += time.perf_counter() - pause
                waiting = None
                if run.ending() is not None:
                    return
        seconds = time.perf_counter() - started - paused
        if waiting is not None:
            yield run.remember(waiting)
            if run.ending() is not None:
                return
        waiting = run.judge(seconds)
        if not run.overlaps:
            yield run.remember(waiting)
            waiting = None
