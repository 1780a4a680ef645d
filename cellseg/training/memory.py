"""Memory: the peak of a run, and a check at its start that its largest images fit."""

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cellseg.config import TrialConfig
from cellseg.data.batch import Item
from cellseg.data.grouping import batch_pixels
from cellseg.data.loader import TrainingImages, epoch_batches
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.names import counted
from cellseg.training.stepper import Stepper

PLANNED_VISITS = 20_000
"""Image visits that a rehearsal plans ahead, at least one epoch: a few seconds."""


@dataclass(frozen=True)
class Together:
    """Images that go through the network at the same time."""

    epoch: int = 0
    positions: tuple[int, ...] = ()
    pixels: int = 0
    """Padding included."""
    cells: int = 0


def peak_memory(device: torch.device) -> int:
    """Return the peak in bytes so far: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def hardest_batches(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig, size: int) -> list[list[Item]]:
    """Return the batches of the run that need most memory, at most ``size`` images at a time: the one with the most
    pixels, padding included, and the one with the most cells.

    They are batches of the training itself, with its scaling, rotation and grouping, which follow from the seed. Of a
    very long run, only whole epochs within the first ``PLANNED_VISITS`` are searched. Cells that a crop or warp cuts
    away count too. A single batch if it has both the most pixels and the most cells.
    """
    images = TrainingImages(data, indices, config)
    batches = epoch_batches(images)
    cells_I = data.label_counts[[*indices]].sum(axis=1)
    largest = fullest = Together()
    for epoch in range(1, min(config.train.epochs, max(PLANNED_VISITS // len(indices), 1)) + 1):
        shapes_N2 = images.shapes(epoch)
        for batch in batches.of_epoch(epoch, shapes_N2):
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                found = Together(epoch, tuple(part), batch_pixels(shapes_N2[part]), int(cells_I[part].sum()))
                largest = max(largest, found, key=lambda part: (part.pixels, part.cells))
                fullest = max(fullest, found, key=lambda part: (part.cells, part.pixels))
    hardest = dict.fromkeys((largest, fullest))
    return [[images[part.epoch, position] for position in part.positions] for part in hardest]


def describe_hardest(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig) -> str:
    """Describe the largest and the fullest training image: "up to 1024 x 1024 px and 812 cells"."""
    sizes = [scaled_size(height, width, config.data) for height, width in data.sizes[[*indices]].tolist()]
    height, width = max(sizes, key=math.prod)
    if config.data.crop is not None:
        height = width = config.data.crop
    return f"up to {height} x {width} px and {counted(int(data.label_counts[[*indices]].sum(axis=1).max()), 'cell')}"


def rehearse(stepper: Stepper, batch: list[Item]) -> None:
    """Compute the gradients of ``batch`` with the memory of a later step in use; the weights do not change.

    Weights, statistics of norms, gradients and torch's generators are left as they were.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    buffers = {name: buffer.clone() for name, buffer in stepper.model.named_buffers()}
    was_training = stepper.model.training
    stepper.model.train()
    try:
        with torch.random.fork_rng([stepper.device] if stepper.device.type == "cuda" else []), _state_to_come(stepper):
            stepper.add_gradients(batch)
    finally:
        stepper.optimizer.zero_grad(set_to_none=True)
        stepper.model.train(was_training)
        for name, buffer in stepper.model.named_buffers():
            buffer.copy_(buffers[name])


@contextmanager
def _state_to_come(stepper: Stepper) -> Iterator[None]:
    """Hold the memory that the optimiser will allocate in its first step."""
    optimizer = stepper.optimizer
    count = 0 if optimizer.state else moments_per_weight(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    held = [torch.empty_like(weight) for weight in weights for _ in range(count)]
    yield
    del held


def moments_per_weight(optimizer: torch.optim.Optimizer) -> int:
    """Return how many values an optimiser of :mod:`cellseg.training.optim` remembers for each weight."""
    if isinstance(optimizer, torch.optim.AdamW):
        return 2
    return 1 if optimizer.param_groups[0]["momentum"] else 0
