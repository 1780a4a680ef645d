"""Synthetic data sets on disk: the release layout, and the truth of the test images as COCO JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cellseg.data.coco_export import sample_annotations
from cellseg.data.sample import Sample
from cellseg.data.synthetic.kinds import KINDS
from cellseg.data.synthetic.scene import generate_sample
from cellseg.files import write_json

_STREAMS = {"train": 0, "test": 1}  # part of every image's seed: never renumber


def write_dataset(root: Path, train: int, test: int, seed: int, size: int) -> None:
    """Write the data set to the new folder ``root``; see :func:`cellseg.data.synthetic.generate_dataset`."""
    (root / "test_release").mkdir(parents=True)
    for index in range(train):
        rng, sample = _generate("train", index, seed, size)
        _write_training_sample(root / "train" / sample.name, sample, rng)
    image_list: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(test):
        _, sample = _generate("test", index, seed, size)
        file_name, (height, width) = f"{sample.name}.tif", sample.size
        _write_image(root / "test_release" / file_name, sample)
        image_list.append({"file_name": file_name, "id": index + 1, "height": height, "width": width})
        for annotation in sample_annotations(sample):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
    write_json(root / "test_image_name_to_ids.json", image_list)
    categories = [{"id": label, "name": name} for label, name in enumerate(KINDS, start=1)]
    truth = {"images": image_list, "categories": categories, "annotations": annotations}
    write_json(root / "test_truth.json", truth)


def _generate(split: str, index: int, seed: int, size: int) -> tuple[np.random.Generator, Sample]:
    """Generate an image; also returns its random stream, for further draws."""
    rng = np.random.default_rng([seed, _STREAMS[split], index])
    height, width = (round(size * rng.uniform(0.8, 1.2)) for _ in range(2))
    return rng, generate_sample(rng, f"{split}-{index + 1:04d}", height, width)


def _write_training_sample(folder: Path, sample: Sample, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    _write_image(folder / "image.tif", sample)
    for label in np.unique(sample.labels_N):
        members = np.flatnonzero(sample.labels_N == label) + 1
        id_of_cell = np.zeros(len(sample.labels_N) + 1)
        # Ids with gaps, and the same ones in several classes: as in hand-annotated data.
        id_of_cell[members] = np.cumsum(rng.integers(1, 4, size=len(members)))
        # Cells of one class never share a pixel, so one map holds them all.
        class_HW = id_of_cell[sample.planes_PHW].max(axis=0)
        _write_tiff(folder / f"class{label}.tif", class_HW)


def _write_image(path: Path, sample: Sample) -> None:
    opaque_HW1 = np.full((*sample.size, 1), 255, np.uint8)
    _write_tiff(path, np.concatenate([sample.image_HWC, opaque_HW1], axis=-1))


def _write_tiff(path: Path, array: np.ndarray) -> None:
    if array.ndim == 3:
        kind: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    else:
        kind = {"photometric": "minisblack"}
    # No metadata: tifffile would otherwise note the shape in a private tag.
    tifffile.imwrite(path, array, compression="lzw", metadata=None, **kind)
