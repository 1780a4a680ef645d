"""One training run: ``fit`` yields a report an epoch; ``python -m cellseg.train CONFIG.yaml`` runs it alone."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.config import TrialConfig
from cellseg.errors import UserError
from cellseg.report import EpochReport, TrainingError

if TYPE_CHECKING:
    import torch

    from cellseg.data.packed import PackedDataset


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

    Args:
        on_step: called with (steps done, steps of the epoch).

    Raises:
        UserError: settings the data or the model cannot meet, or a folder of another run.
        TrainingError: a training or validation loss that is not finite, or a GPU out of memory.
    """
    from cellseg.training import TrainingRun, peak_memory

    with _memory_as_training_error():
        run = TrainingRun(config, data, folder, device)
        run.resume()
    while run.ending() is None:
        run.epoch += 1
        started = time.perf_counter()
        with _memory_as_training_error():
            losses = run.train_epoch(on_step)
            trained = time.perf_counter()
            metrics = run.validate()
        run.remember(losses, metrics)
        yield EpochReport(
            epoch=run.epoch,
            losses=losses,
            metrics=metrics,
            value=metrics[config.train.metric],
            best_value=run.best_value,
            best_epoch=run.best_epoch,
            learning_rate=run.learning_rate,
            seconds=time.perf_counter() - started,
            images_per_second=len(run.split.training) / (trained - started),
            peak_memory_bytes=peak_memory(run.device),
            parameters=run.parameters,
            ending=run.ending(),
        )


@contextmanager
def _memory_as_training_error() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError("out-of-memory", str(error).splitlines()[0]) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellseg.train", description=__doc__)
    parser.add_argument(
        "config", type=Path, help="YAML file of settings (`python -m cellseg.config` lists them), nested or dotted"
    )
    parser.add_argument("--data", type=Path, help="folder of the data set; default: the config's data.root")
    parser.add_argument("--out", type=Path, help="folder of the run; default: results/train-<config's name>")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting over the file's")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU where there is one")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.config import flatten, parse_overrides
    from cellseg.files import read_yaml

    where = str(arguments.config)
    flat = flatten(read_yaml(arguments.config) or {}, where) | parse_overrides(arguments.set)
    if arguments.data is not None:
        flat["data.root"] = str(arguments.data.resolve())
    config = TrialConfig.from_flat(flat, where)
    out = arguments.out or Path("results") / f"train-{arguments.config.stem}"

    from rich.progress import Progress

    from cellseg.data.packed import open_packed
    from cellseg.device import pick_device
    from cellseg.training import BEST

    device = pick_device(arguments.device)
    data = open_packed(config.data)
    say(f"{len(data)} images of {len(data.class_names)} classes, {device}, checkpoints in {out}")
    report = None
    with Progress(transient=True) as progress:
        bar = progress.add_task("epoch 1")
        try:
            for report in fit(
                config, data, out, device=device, on_step=lambda n, of: progress.update(bar, completed=n, total=of)
            ):
                progress.reset(bar, description=f"epoch {report.epoch + 1}")
                progress.console.print(
                    f"epoch {report.epoch:3d}  loss {report.losses['loss']:.4f}  "
                    f"{config.train.metric} {report.value:.4f}  "
                    f"{report.images_per_second:.1f} images/s, {report.seconds:.0f} s"
                )
        except TrainingError as failure:
            raise UserError(
                f"{where}: training ended with {failure}. Lower optim.lr, the image size or the batch."
            ) from failure
    if report is None:
        say(f"{out} is already trained to the end")
    else:
        say(f"best: {config.train.metric} {report.best_value:.4f} in epoch {report.best_epoch}, {out / BEST}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
