"""Small trials side by side on one GPU, each in a process with its share of the memory, as ``resources.gpu`` has it.

All begin their measured epochs together. Ratios: ``gain_N``: training images per second of N trials together over those
of one alone; sharing pays where it is well above 1. Figures: ``images_per_second_N`` together, and on a GPU
``gpu_utilisation_N``.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.epoch import config, generated
from benchmarks.gpu import Utilisation
from benchmarks.measure import Report, add_sizes, make_parser, run
from cellseg.errors import UserError

PATIENCE_SECONDS = 300
"""So long a process waits for the others to begin."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("shared_gpu", "Small trials side by side on one GPU.", rounds=1)
    sizes = {
        "trials": (4, "most trials side by side"),
        "images": (48, "training images of each trial"),
        "side": (256, "pixels of the square images' side"),
        "epochs": (4, "measured epochs of each trial"),
        "batch": (4, "images in a step"),
        "workers": (2, "loader processes of each trial"),
    }
    add_sizes(parser, sizes)
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    toy = {"trials": 2, "images": 4, "side": 64, "epochs": 1, "batch": 2, "workers": 1}
    return run(parser, measure, toy, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run 1, 2, ... trials side by side at the sizes in ``arguments``."""
    from cellseg.device import pick_device

    device = pick_device(arguments.device)
    seconds: dict[str, list[float]] = {}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        generated(Path(scratch), arguments.images, arguments.side)
        for count in range(1, arguments.trials + 1):
            utilisation = Utilisation(device)
            together = partial(_side_by_side, count, Path(scratch), str(device), arguments)
            seconds[f"{count} side by side"] = utilisation.during(together)()
            work = count * arguments.images * arguments.epochs
            figures[f"images_per_second_{count}"] = work / max(seconds[f"{count} side by side"])
            if device.type == "cuda":
                figures[f"gpu_utilisation_{count}"] = utilisation.mean()
    alone = figures["images_per_second_1"]
    return Report(
        benchmark="shared_gpu",
        description=f"Trials of {arguments.images} images of {arguments.side} pixels, ResNet18-FPN, side by side",
        parameters={name: getattr(arguments, name) for name in ("images", "side", "epochs", "batch", "workers")}
        | {"device": str(device)},
        seconds=seconds,
        ratios={f"gain_{n}": figures[f"images_per_second_{n}"] / alone for n in range(2, arguments.trials + 1)},
        figures=figures,
    )


def _side_by_side(count: int, folder: Path, device: str, arguments: argparse.Namespace) -> list[float]:
    """Seconds that each of ``count`` trials took for its measured epochs."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    barrier, times = context.Barrier(count), context.Queue()
    sizes = {name: getattr(arguments, name) for name in ("images", "side", "epochs", "batch", "workers")}
    processes = [
        context.Process(target=_train, args=(folder, f"run{count}-{number}", 1 / count, device, sizes, barrier, times))
        for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise UserError(f"shared_gpu: {count} trials must fit on {device}, but got exit status {failed}. See above.")
    return [times.get(timeout=PATIENCE_SECONDS) for _ in processes]


def _train(
    folder: Path, name: str, share: float, device_name: str, sizes: dict[str, int], barrier: Barrier, times: Queue
) -> None:
    """A trial in a process of its own; how long its epochs took after the first goes to ``times``."""
    import torch

    from cellseg.config import DataConfig
    from cellseg.data.packed import open_packed
    from cellseg.device import limit_gpu_memory
    from cellseg.training.fit import fit

    device = torch.device(device_name)
    if device.type == "cuda" and share < 1:
        limit_gpu_memory(device, share)
    data = open_packed(DataConfig(root=str(folder / "data")), folder / "cache")
    trial = config("resnet18", sizes["batch"], epochs=sizes["epochs"] + 1, workers=sizes["workers"])
    reports = fit(trial, data, folder / name, device=device)
    next(reports)  # first use
    barrier.wait(PATIENCE_SECONDS)
    started = time.perf_counter()
    for _ in reports:
        pass
    times.put(time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
