"""Training batches from packed samples: scaled, augmented, with targets, in an order that only the seed decides."""

import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cellseg.config import DataConfig, TrialConfig
from cellseg.data.augment import PRESETS, WARPS, build_augmentation
from cellseg.data.batch import Item, JoinedBatch
from cellseg.data.grouping import group_batches
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import resize_image, resize_planes, scaled_size, to_color
from cellseg.data.sample import Sample
from cellseg.data.targets import make_target
from cellseg.data.visits import plan_visit
from cellseg.data.workers import num_workers
from cellseg.device import pick_device


def plain_item(sample: Sample, data: DataConfig) -> Item:
    """Make a sample with its target as in prediction: scaled and coloured, neither cropped nor augmented."""
    image_HWC, planes_PHW = _scaled(sample, scaled_size(*sample.size, data), data)
    return _channels_first(image_HWC), make_target(planes_PHW, sample.labels_N)


class TrainingImages(Dataset):
    """The training samples of a config, augmented anew at each visit.

    An item is asked for by (epoch, sample index): what is random about it follows from the run's seed and these two
    numbers, so it does not matter which process makes it, or after how many others.
    """

    def __init__(self, data: PackedDataset, indices: tuple[int, ...], config: TrialConfig):
        self.data = data
        self.indices = indices
        self.config = config
        self.augmentation = build_augmentation(config.augment)
        self._cuts_cells = config.data.crop is not None or not WARPS.isdisjoint(PRESETS[config.augment.preset])
        self._areas: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, visit: tuple[int, int]) -> Item:
        epoch, position = visit
        config = self.config.data
        index = self.indices[position]
        sample = self.data[index]
        plan = plan_visit(self.config, epoch, index, sample.size)
        changed = self.augmentation.change(*_scaled(sample, plan.scaled, config), plan.seed, config.crop)
        least_N = None
        if self._cuts_cells:
            growth = changed.magnification * math.prod(plan.scaled) / math.prod(sample.size)
            least_N = self._cell_areas(index, sample) * (growth * self.config.augment.min_visible)
        target = make_target(changed.planes_PHW, sample.labels_N, least_areas_N=least_N)
        return _channels_first(changed.image_HWC), target

    def shapes(self, epoch: int) -> np.ndarray:
        """(N, 2): height and width in pixels of an epoch's items, without making the items."""
        sizes = ((int(height), int(width)) for height, width in self.data.sizes[[*self.indices]])
        plans = (plan_visit(self.config, epoch, index, size) for index, size in zip(self.indices, sizes, strict=True))
        return np.array([plan.shape for plan in plans])

    def _cell_areas(self, index: int, sample: Sample) -> np.ndarray:
        """(N,) annotated pixels of each cell of a sample; counted once."""
        if index not in self._areas:
            counts = np.bincount(sample.planes_PHW.ravel(), minlength=len(sample.labels_N) + 1)
            self._areas[index] = counts[1:]
        return self._areas[index]


class EpochBatches(Sampler):
    """Batches of (epoch, position) for one epoch, in an order that follows from (seed, epoch)."""

    def __init__(self, num_samples: int, batch_size: int, seed: int, shapes: Callable[[int], np.ndarray] | None = None):
        """``shapes``: (N, 2) heights and widths of an epoch's items, to group them by. None: all are of one size."""
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shapes = shapes
        self.epoch = 1

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        shapes_N2 = np.ones((self.num_samples, 2)) if self.shapes is None else self.shapes(self.epoch)
        for batch in self.of_epoch(self.epoch, shapes_N2):
            yield [(self.epoch, position) for position in batch]

    def of_epoch(self, epoch: int, shapes_N2: np.ndarray) -> list[list[int]]:
        """The positions in each batch of an epoch, whose items have these shapes: see
        :func:`cellseg.data.grouping.group_batches`."""
        return group_batches(shapes_N2, self.batch_size, np.random.default_rng([self.seed, epoch]))


def epoch_batches(images: TrainingImages) -> EpochBatches:
    """The batches in which a run sees its training images."""
    train = images.config.train
    return EpochBatches(len(images), train.batch_size, train.seed, images.shapes)


class EpochLoader(DataLoader):
    """A loader of lists of :data:`Item` that draws one number from torch's global generator for each epoch.

    torch's own loader draws one when it starts workers, and in every epoch where it has none: with workers that stay
    from epoch to epoch, what the model draws afterwards would depend on their number.
    """

    def __iter__(self) -> Any:
        torch.empty((), dtype=torch.int64).random_()
        return map(JoinedBatch.items, super().__iter__())


def training_loader(
    data: PackedDataset, indices: tuple[int, ...], config: TrialConfig, device: torch.device | None = None
) -> tuple[DataLoader, EpochBatches]:
    """Build a loader of lists of :data:`Item`, and its sampler, whose ``epoch`` the caller sets before each epoch.

    Loader processes (:func:`cellseg.data.workers.num_workers`) start with the first epoch. They read the pages of
    ``data`` that this process has mapped, stay from epoch to epoch, and end with the loader: when nothing refers to it
    any more.

    Args:
        device: where the batches will go; None is the device that :func:`cellseg.device.pick_device` picks.

    Raises:
        UserError: too little shared memory for ``train.workers``.
    """
    images = TrainingImages(data, indices, config)
    batches = epoch_batches(images)
    device = device or pick_device()
    workers = num_workers(data, indices, config, device, len(batches))
    # A forked worker shares what its parent has mapped. A spawned one gets a copy of the table through a pipe.
    fork = workers > 0 and sys.platform == "linux"
    loader = EpochLoader(
        images,
        batch_sampler=batches,
        collate_fn=JoinedBatch.of,
        generator=torch.Generator(),  # for the draw that EpochLoader makes itself
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if fork else None,
        worker_init_fn=_use_one_thread,
        pin_memory=device.type == "cuda",
    )
    return loader, batches


def _use_one_thread(worker: int) -> None:
    """Let OpenCV compute in the worker's own thread, as torch's loader lets torch."""
    # Not 1: OpenCV would then end the threads of its parent's pool, which a forked process lacks, and crash.
    cv2.setNumThreads(0)


def _scaled(sample: Sample, size: tuple[int, int], data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Scale image (H, W, 3) and planes (P, H, W) of a sample to ``size``, in the colours of ``data``."""
    image_HWC = resize_image(to_color(sample.image_HWC, data.color), size)
    return image_HWC, resize_planes(sample.planes_PHW, size)


def _channels_first(image_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(cv2.split(image_HWC)))  # three times as quick as copying a transposed view
