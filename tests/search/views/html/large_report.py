"""A large report: 300 trials of a space with many parameters, and 41 validation images full of cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_study import make_tables

from cellseg.config import DataConfig
from cellseg.data.detections import Detections
from cellseg.data.packed import PackedDataset, open_packed
from cellseg.data.rle import decode, encode_window
from cellseg.data.synthetic import generate_dataset
from search.space import load_space
from search.storage.store import StudyStore
from search.views.html.predictions import Validation

TRIALS, IMAGES, SIDE = 300, 41, 512
SPACE = Path(__file__).parents[4] / "spaces" / "full.yaml"


def make_study(folder: Path) -> StudyStore:
    """The tables of the study, in ``folder/large``."""
    return make_tables(folder / "large", load_space(SPACE), TRIALS, running=2)


def make_validation(folder: Path) -> Validation:
    """Images with their cells, and what a fair model would find: a tenth missed, some moved, some made up."""
    generate_dataset(folder / "cells", train=IMAGES, test=0, seed=0, size=SIDE)
    data: PackedDataset = open_packed(DataConfig(root=str(folder / "cells")), folder / "cache")
    rng = np.random.default_rng(0)
    truths = [Detections.from_sample(data[index]) for index in range(IMAGES)]
    found = [_found(truth, rng, len(data.class_names)) for truth in truths]
    return Validation(0, data, tuple(range(IMAGES)), IMAGES, truths, found, 160)


def _found(truth: Detections, rng: np.random.Generator, num_classes: int) -> Detections:
    size: tuple[int, int] = truth.size
    rles: list[Any] = []
    labels: list[int] = []
    for rle, label in zip(truth.rles, truth.labels_N.tolist(), strict=True):
        if rng.random() < 0.9:
            rles.append(_moved(rle, rng.integers(-2, 3, 2).tolist(), size))
            labels.append(label)
    for _ in range(len(rles) // 8):
        top, left = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        rles.append(encode_window(np.ones((12, 12), np.uint8), int(top), int(left), *size))
        labels.append(int(rng.integers(1, num_classes + 1)))
    count = len(rles)
    scores_N = np.sort(rng.beta(4, 2, count))[::-1].astype(np.float32)
    return Detections(size, np.zeros((count, 4), np.float32), scores_N, np.array(labels, np.int64), tuple(rles))


def _moved(rle: Any, by: Sequence[int], size: tuple[int, int]) -> Any:
    mask_HW = np.roll(decode(rle), tuple(by), (0, 1)).astype(np.uint8)
    return encode_window(mask_HW, 0, 0, *size)
