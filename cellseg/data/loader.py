"""Training batches from packed samples: scaled, augmented, with targets, in an order that only the seed decides."""

import sys
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cellseg.config import DataConfig, TrialConfig
from cellseg.data.augment import build_augmentation, random_crop
from cellseg.data.batch import Item, JoinedBatch
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import multiply_size, resize_image, resize_planes, scaled_size, to_color
from cellseg.data.sample import Sample
from cellseg.data.targets import make_target
from cellseg.device import pick_device


def plain_item(sample: Sample, data: DataConfig) -> Item:
    """A sample as prediction sees it, with its target: scaled and coloured, neither cropped nor augmented."""
    return _to_item(*_scaled(sample, scaled_size(*sample.size, data), data), sample.labels_N)


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

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, visit: tuple[int, int]) -> Item:
        epoch, position = visit
        config = self.config.data
        rng = np.random.default_rng([self.config.train.seed, epoch, self.indices[position]])
        sample = self.data[self.indices[position]]
        size = scaled_size(*sample.size, config)
        if config.train_scale_min < 1:
            size = multiply_size(size, rng.uniform(config.train_scale_min, 1))
        image_HWC, planes_PHW = _scaled(sample, size, config)
        if config.crop is not None:
            image_HWC, planes_PHW = random_crop(image_HWC, planes_PHW, config.crop, rng)
        image_HWC, planes_PHW = self.augmentation(image_HWC, planes_PHW, int(rng.integers(2**31)))
        return _to_item(image_HWC, planes_PHW, sample.labels_N)


class EpochBatches(Sampler):
    """Batches of (epoch, position) for one epoch, in an order that follows from (seed, epoch)."""

    def __init__(self, num_samples: int, batch_size: int, seed: int):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 1

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_samples)
        for start in range(0, self.num_samples, self.batch_size):
            yield [(self.epoch, int(position)) for position in order[start : start + self.batch_size]]


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

    With ``train.workers`` above 0 as many processes start with the first epoch. They read the pages of ``data`` that
    this process has mapped, stay from epoch to epoch, and end with the loader: when nothing refers to it any more.

    Args:
        device: where the batches will go; None is the device that :func:`cellseg.device.pick_device` picks.
    """
    batches = EpochBatches(len(indices), config.train.batch_size, config.train.seed)
    workers = config.train.workers
    # A forked worker shares what its parent has mapped. A spawned one gets a copy of the table through a pipe.
    fork = workers > 0 and sys.platform == "linux"
    loader = EpochLoader(
        TrainingImages(data, indices, config),
        batch_sampler=batches,
        collate_fn=JoinedBatch.of,
        generator=torch.Generator(),  # for the draw that EpochLoader makes itself
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if fork else None,
        worker_init_fn=_use_one_thread,
        pin_memory=(device or pick_device()).type == "cuda",
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


def _to_item(image_HWC: np.ndarray, planes_PHW: np.ndarray, labels_N: np.ndarray) -> Item:
    image_CHW = np.stack(cv2.split(image_HWC))  # three times as quick as copying a transposed view
    return torch.from_numpy(image_CHW), make_target(planes_PHW, labels_N)
