"""Memory: how much a run has taken, and whether its worst images fit, before hours went into it."""

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from cellseg.config import TrialConfig
from cellseg.data.batch import Item
from cellseg.data.loader import TrainingImages
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.training.stepper import Stepper


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated on a GPU, or resident in this process where a CPU computes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def hardest_batches(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig, size: int) -> list[list[Item]]:
    """The training images that need most memory, ``size`` together: those with most cells, and the largest.

    They come as training sees them, at their largest: cropped, but neither shrunk nor augmented. One batch where the
    densest are the largest.
    """
    plain = config.replace(augment__preset="none", data__train_scale_min=1.0)
    images = TrainingImages(data, indices, plain)
    positions = {tuple(sorted(order[:size])) for order in _hardest_first(data, indices, config)}
    return [[images[0, position] for position in together] for together in sorted(positions)]


def describe_hardest(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig) -> str:
    """The largest and the fullest training image in words: "up to 1024 x 1024 px and 812 cells"."""
    most_cells, largest = (order[0] for order in _hardest_first(data, indices, config))
    height, width = scaled_size(*data[indices[largest]].size, config.data)
    if config.data.crop is not None:
        height = width = config.data.crop
    return f"up to {height} x {width} px and {len(data.labels(indices[most_cells]))} cells"


def _hardest_first(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig) -> tuple[list[int], list[int]]:
    """Positions in ``indices`` by falling number of cells, and by falling area at the network's scale."""
    cells_I = np.array([len(data.labels(index)) for index in indices])
    area_I = np.array([math.prod(scaled_size(height, width, config.data)) for height, width in data.sizes[[*indices]]])
    return np.argsort(-cells_I, kind="stable").tolist(), np.argsort(-area_I, kind="stable").tolist()


def rehearse(stepper: Stepper, batch: list[Item]) -> None:
    """Take a step on ``batch`` but for the change of the weights, with as much memory taken as a later step finds.

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
    """Hold as much memory as the optimiser will, which takes it at its first step."""
    optimizer = stepper.optimizer
    count = 0 if optimizer.state else moments_per_weight(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    held = [torch.empty_like(weight) for weight in weights for _ in range(count)]
    yield
    del held


def moments_per_weight(optimizer: torch.optim.Optimizer) -> int:
    """How many values an optimiser of :mod:`cellseg.training.optim` remembers for each weight."""
    if isinstance(optimizer, torch.optim.AdamW):
        return 2
    return 1 if optimizer.param_groups[0]["momentum"] else 0
