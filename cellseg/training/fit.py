"""The loop of a training run: :func:`fit` trains, validates and yields one report per epoch."""

import gc
import time
from collections.abc import Callable, Generator, Iterator
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
) -> Generator[EpochReport, None, None]:
    """Train as ``config`` says and yield an :class:`EpochReport` after each epoch.

    Before each report it writes ``folder/last`` and, for a new best, ``folder/best``. A folder that holds ``last`` is
    resumed; on a CPU the numbers are those of an uninterrupted run. The generator may be closed at any report.
    Torch's global generator is seeded from (seed, epoch) at the start of each epoch.

    On a GPU the images that need most memory are tried first. Where memory runs out, then or later, half as many images
    at a time go through the network, from the last checkpoint on; the effective batch stays. On a GPU an epoch
    also begins while the figures of the one before are computed; that one is reported between two steps.

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
                hardest = describe_hardest(data, split(data.label_counts, config.data, data.groups).training, config)
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
    """Run the remaining epochs with at most ``micro_batch`` images at a time in the network."""
    from cellseg.training.run import TrainingRun

    with closing(TrainingRun(config, data, folder, device, micro_batch)) as run:
        run.resume()
        if run.on_gpu and run.ending() is None:
            run.rehearse()
        yield from _epochs(run, on_step)


def _epochs(run: "TrainingRun", on_step: Callable[[int, int], None] | None) -> Iterator[EpochReport]:
    """Train, judge and report one epoch after the other until the run is over.

    An epoch is reported as soon as its figures are known. Until then the next one trains, where the two may overlap.
    """
    judged: TrainedEpoch | None = None
    overlaps = False
    while True:
        training = _EpochTraining(run, on_step)
        if judged is not None:
            while overlaps and not judged.metrics.done() and training.step():
                pass
            yield run.remember(judged)
        if run.ending() is not None:
            return
        while training.step():
            pass
        judged = run.judge(training.seconds)
        overlaps = run.overlaps


class _EpochTraining:
    """The training of the next epoch, a batch at a time."""

    def __init__(self, run: "TrainingRun", on_step: Callable[[int, int], None] | None):
        self.run = run
        self.on_step = on_step
        self.seconds = 0.0
        """Wall-clock time of all steps, without the time between them."""
        self._steps: Iterator[tuple[int, int]] | None = None

    def step(self) -> bool:
        """Train on the next batch; False if there is none left."""
        started = time.perf_counter()
        if self._steps is None:
            self.run.epoch += 1
            self._steps = self.run.train_epoch()
        progress = next(self._steps, None)
        if progress is not None and self.on_step is not None:
            self.on_step(*progress)
        self.seconds += time.perf_counter() - started
        return progress is not None
