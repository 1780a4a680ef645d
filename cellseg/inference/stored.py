"""Predictions on disk: boxes, scores, classes and soft masks of several images, in one compressed file.

An ``.npz`` of plain arrays; nothing in it needs unpickling. A nucleus of 20 px takes 0.8 kB: the probabilities of its
box. Run lengths follow from them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.data.detections import Detections
from cellseg.data.softmask import SoftMask
from cellseg.errors import UserError
from cellseg.files import atomic_path

FORMAT_VERSION = 1


def save_predictions(path: Path, predictions: Sequence[Detections]) -> None:
    """Write the detections of one or more images, with soft masks, in one step."""
    masks = [mask for found in predictions for mask in found.soft or ()]
    assert len(masks) == sum(map(len, predictions)), "soft masks are what is stored"
    arrays: dict[str, Any] = {
        "version": np.array(FORMAT_VERSION),
        "sizes": np.array([found.size for found in predictions], np.int32).reshape(-1, 2),
        "counts": np.array([len(found) for found in predictions], np.int32),
        "boxes": np.concatenate([found.boxes_N4 for found in predictions]).astype(np.float32),
        "scores": np.concatenate([found.scores_N for found in predictions]).astype(np.float32),
        "labels": np.concatenate([found.labels_N for found in predictions]).astype(np.int32),
        "windows": np.array([(m.top, m.left, *m.values_hw.shape) for m in masks], np.int32).reshape(-1, 4),
        "values": np.concatenate([np.zeros(0, np.uint8), *(mask.values_hw.ravel() for mask in masks)]),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_predictions(path: Path, mask_threshold: float) -> list[Detections]:
    """Read the detections of each image, with run lengths at ``mask_threshold``.

    Raises:
        UserError: a file that is damaged or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        version = int(arrays["version"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: must be a file of predictions, but got {error}. Delete it.") from error
    except Exception as error:  # zipfile and zlib have errors of their own
        raise UserError(f"{path}: must be a whole file of predictions, but got {error}. Delete it.") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: must be of version {FORMAT_VERSION}, but got {version}. Delete it.")
    ends = np.cumsum(arrays["windows"][:, 2].astype(np.int64) * arrays["windows"][:, 3])
    pixels = np.split(arrays["values"], ends[:-1]) if len(ends) else []
    masks = [
        SoftMask(int(top), int(left), values.reshape(h, w))
        for (top, left, h, w), values in zip(arrays["windows"], pixels, strict=True)
    ]
    predictions, start = [], 0
    for (height, width), count in zip(arrays["sizes"].tolist(), arrays["counts"].tolist(), strict=True):
        part = slice(start, start + count)
        soft = tuple(masks[part])
        predictions.append(
            Detections(
                (height, width),
                arrays["boxes"][part],
                arrays["scores"][part],
                arrays["labels"][part].astype(np.int64),
                tuple(mask.encode(mask_threshold, (height, width)) for mask in soft),
                soft,
            )
        )
        start += count
    return predictions
