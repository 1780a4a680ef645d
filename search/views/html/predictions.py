"""What the best trial finds in its validation images, computed once and kept beside the tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellseg.errors import UserError
from cellseg.files import read_json, write_json
from search.storage.kept import kept_checkpoint
from search.storage.store import StudyStore
from search.storage.tables import TrialRow

if TYPE_CHECKING:
    from cellseg.data.detections import Detections
    from cellseg.data.packed import PackedDataset

MOST_IMAGES = 200
"""Of a larger validation fold, images are chosen evenly: prediction on a CPU takes seconds for each."""
FOLDER = "validation"


@dataclass(frozen=True)
class Validation:
    """Validation images with true and found cells."""

    trial: int
    data: "PackedDataset"
    indices: tuple[int, ...]
    """Of the images in the data set."""
    num_images: int
    """Of the whole fold."""
    truths: Sequence["Detections"]
    predictions: Sequence["Detections"]
    num_training: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class 1, 2, ..."""
        return tuple(self.data.class_names)


def validate(store: StudyStore, row: TrialRow) -> Validation:
    """Predict the validation images with the kept best checkpoint of a trial, or read what an earlier call found.

    Raises:
        UserError: the checkpoint was not kept, or the data are not where they were.
    """
    if not store.checkpoint_folder(row.number).is_dir():  # before torch is loaded, which takes seconds
        raise UserError(f"{store.folder}: trial {row.number}: its checkpoint must have been kept, but got none.")
    from cellseg.checkpoint import open_checkpoint
    from cellseg.data.detections import Detections
    from cellseg.data.packed import open_packed

    checkpoint = open_checkpoint(kept_checkpoint(store, row.number))
    config = checkpoint.config
    data = open_packed(config.data)
    if data.fingerprint != checkpoint.info.data_fingerprint:
        raise UserError(
            f"{config.data.root}: must hold the data that the trial was trained with, but got others. Restore them."
        )
    folds = data.split(config.data)
    step = max(1.0, len(folds.validation) / MOST_IMAGES)
    chosen = tuple(folds.validation[int(place * step)] for place in range(min(MOST_IMAGES, len(folds.validation))))
    samples = [data[index] for index in chosen]
    path = store.folder / FOLDER / f"t{row.number:04d}-{checkpoint.info.weights_blake2b[:12]}.json"
    found = _read(path, chosen, [sample.size for sample in samples])
    if found is None:
        from cellseg.device import pick_device
        from cellseg.inference.image import load_model, predict_images

        model = load_model(checkpoint, pick_device())
        found = predict_images(model, [sample.image_HWC for sample in samples], config)
        _write(path, chosen, found)
    truths = [Detections.from_sample(sample) for sample in samples]
    return Validation(row.number, data, chosen, len(folds.validation), truths, found, len(folds.training))


def _read(path: Path, indices: Sequence[int], sizes: Sequence[tuple[int, int]]) -> "list[Detections] | None":
    from cellseg.data.detections import Detections

    try:
        content = read_json(path)
        if content["images"] != list(indices):
            return None
        found = []
        for size, cells in zip(sizes, content["cells"], strict=True):
            boxes_N4 = np.array([cell["bbox"] for cell in cells], np.float32).reshape(-1, 4)
            boxes_N4[:, 2:] += boxes_N4[:, :2]
            rles = tuple(
                {"size": cell["segmentation"]["size"], "counts": cell["segmentation"]["counts"].encode()}
                for cell in cells
            )
            scores_N = np.array([cell["score"] for cell in cells], np.float32)
            labels_N = np.array([cell["category_id"] for cell in cells], np.int64)
            found.append(Detections(size, boxes_N4, scores_N, labels_N, rles))
        return found
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None  # not there, or not what this version writes: it is made anew


def _write(path: Path, indices: Sequence[int], found: "Sequence[Detections]") -> None:
    """Keep what was found, where the folder can be written."""
    cells = [cells.to_coco_results(index) for index, cells in zip(indices, found, strict=True)]
    try:
        for old in path.parent.glob(f"{path.name[:5]}-*.json"):
            old.unlink()
        write_json(path, {"images": list(indices), "cells": cells})
    except (UserError, OSError):
        return
