"""How many processes load the training images, and whether what they send fits into shared memory."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from cellseg.config import TrialConfig
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
"""Where batches of other processes lie on Linux, until the one that trains has taken them."""

MOST = 16
"""Of ``auto``: more loaders than this feed no GPU faster, but take memory each."""

BATCHES_AHEAD = 2
"""Batches that each loader has ready or at hand: torch's ``prefetch_factor``."""

IN_HAND = 3
"""Batches besides: one that trains, one that is pinned, one on its way."""


def num_workers(
    data: PackedDataset, indices: tuple[int, ...], config: TrialConfig, device: torch.device, num_batches: int
) -> int:
    """The number of loader processes for ``train.workers``.

    ``auto`` is 0 where a CPU trains: it has no time to spare. For a GPU it is the CPUs that this process was given for
    it less one, which stays with training, but at least 1 and at most ``MOST`` and ``num_batches``; and fewer, with a
    warning, where shared memory has no room for their batches. A number that was asked for is taken, or refused.

    Raises:
        UserError: shared memory has no room for the batches of so many.
    """
    asked = config.train.workers
    wanted = _automatic(device, num_batches) if asked == "auto" else asked
    if not wanted or (free := free_shared_memory()) is None:
        return wanted
    batch_bytes = largest_batch_bytes(data, indices, config)
    if _needed(wanted, batch_bytes) <= free:
        return wanted
    fitting = max((free // batch_bytes - IN_HAND) // BATCHES_AHEAD, 0)
    problem = (
        f"train.workers: {wanted} loader processes need {_needed(wanted, batch_bytes) / 1e6:.0f} MB of shared memory "
        f"for batches of up to {batch_bytes / 1e6:.0f} MB, but got {free / 1e6:.0f} MB free in {SHARED_MEMORY}."
    )
    remedy = "Give the container more (docker run --shm-size=8g)"
    if asked == "auto":
        warnings.warn(f"{problem} {fitting} are used. {remedy} for all of them.", RuntimeWarning, stacklevel=2)
        return fitting
    raise UserError(f"{problem} {remedy}, or take at most {fitting} workers.")


def given_cpus() -> int:
    """CPUs for this process: those it may run on, shared among the GPUs it sees, and no more than torch's threads,
    which a search sets to what a trial was given."""
    may_run_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(may_run_on // max(torch.cuda.device_count(), 1), torch.get_num_threads()), 1)


def free_shared_memory() -> int | None:
    """Bytes; None on systems where batches travel in other ways."""
    if sys.platform != "linux" or not SHARED_MEMORY.is_dir():
        return None
    state = os.statvfs(SHARED_MEMORY)
    return state.f_bavail * state.f_frsize


def largest_batch_bytes(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig) -> int:
    """Bytes of the images and planes of the largest batch there can be."""
    crop = config.data.crop
    bytes_of_images = []
    for index in indices:
        height, width = (int(side) for side in data.sizes[index])
        scaled_height, scaled_width = (crop, crop) if crop else scaled_size(height, width, config.data)
        bytes_a_pixel = 3 + 2 * (data.plane_pixels[index] // (height * width))
        bytes_of_images.append(scaled_height * scaled_width * bytes_a_pixel)
    return int(np.sort(bytes_of_images)[-config.train.batch_size :].sum())


def _automatic(device: torch.device, num_batches: int) -> int:
    if device.type != "cuda":
        return 0
    return min(max(given_cpus() - 1, 1), MOST, num_batches)


def _needed(workers: int, batch_bytes: int) -> int:
    return (workers * BATCHES_AHEAD + IN_HAND) * batch_bytes
