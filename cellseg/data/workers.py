"""The number of loader processes, and whether their batches fit into shared memory."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from cellseg.config import TrialConfig
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.device import usable_cpus
from cellseg.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
"""Linux's shared memory, which holds the batches of loader processes until training takes them."""

MOST = 16
"""Upper limit of ``auto``: more loaders take memory but do not feed a GPU faster."""

BATCHES_AHEAD = 2
"""Batches that each loader prefetches: torch's ``prefetch_factor``."""

IN_HAND = 3
"""Further batches: one in training, one being pinned, one in transit."""


def num_workers(
    data: PackedDataset, indices: tuple[int, ...], config: TrialConfig, device: torch.device, num_batches: int
) -> int:
    """Return the number of loader processes for ``train.workers``.

    ``auto`` is 0 on a CPU, which has no time to spare. For a GPU it is this process's share of the CPUs minus one for
    training, but at least 1 and at most ``MOST`` and ``num_batches``; and fewer, with a warning, if shared memory has
    no room for their batches. An explicit number is used as it is, or refused.

    Raises:
        UserError: shared memory has no room for the batches of that many.
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
        warnings.warn(f"{problem} Using {fitting}. {remedy} to use all of them.", RuntimeWarning, stacklevel=2)
        return fitting
    raise UserError(f"{problem} {remedy}, or use at most {fitting} workers.")


def given_cpus() -> int:
    """Return the CPUs of this process: those it may run on, divided by the GPUs it sees, at most torch's threads, which
    a search sets to a trial's CPUs."""
    return max(min(usable_cpus() // max(torch.cuda.device_count(), 1), torch.get_num_threads()), 1)


def free_shared_memory() -> int | None:
    """Return the free bytes; None on systems that send batches in other ways."""
    if sys.platform != "linux" or not SHARED_MEMORY.is_dir():
        return None
    state = os.statvfs(SHARED_MEMORY)
    return state.f_bavail * state.f_frsize


def largest_batch_bytes(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig) -> int:
    """Return the bytes of images and planes of the largest possible batch."""
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
