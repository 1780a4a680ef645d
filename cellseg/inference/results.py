"""COCO results of the listed test images: the file that a leaderboard takes, written and checked."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.errors import UserError
from cellseg.files import atomic_path
from cellseg.inference.image import batched

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cellseg.checkpoint import Checkpoint
    from cellseg.config import DataConfig
    from cellseg.data.detections import Detections
    from cellseg.data.testset import TestImage
    from cellseg.device import Room
    from cellseg.inference.ensemble import Ensemble

IMAGES_AT_ONCE = 16
"""Test images read ahead on a GPU, to predict those of equal size together."""


def write_results(
    checkpoint: "Checkpoint",
    images: "Sequence[TestImage]",
    out: Path,
    *,
    device: "torch.device | str" = "cpu",
    on_image: Callable[[int, int], None] | None = None,
    ensemble: "Ensemble | None" = None,
) -> int:
    """Predict test images and write COCO results (RLE masks) to ``out``; the number of detections.

    Classes are written as the category ids of the annotations that the model was trained on. Every listed image whose
    file is there is predicted; the caller decides about absent ones. The file is validated with pycocotools against the
    list before it takes its name.

    Args:
        ensemble: what predicts instead of the checkpoint's model; of the same classes.

    Raises:
        UserError: an unreadable image, a size that differs from the list's, or no image at all.
    """
    present = present_images(images, out)
    from cellseg.device import Room
    from cellseg.inference.ensemble import Ensemble, Member

    ensemble = ensemble or Ensemble([Member.load(checkpoint, device)])
    category_ids = checkpoint.info.category_ids
    model_device = next(ensemble.members[0].model.parameters()).device
    room = Room.of(model_device)
    problems: list[str] = []
    results: list[dict[str, Any]] = []
    done = 0
    for together in batched(present, IMAGES_AT_ONCE if model_device.type == "cuda" else 1):
        listed, images_HWC = _read(together, checkpoint.config.data, problems)
        for image, found in zip(listed, _predict(ensemble, images_HWC, room, out), strict=True):
            results.extend(found.to_coco_results(image.image_id, category_ids))
        for _ in together:
            done += 1
            if on_image is not None:
                on_image(done, len(present))
    if problems:
        raise UserError(*problems)
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(results, allow_nan=False), encoding="utf-8")
        check_results(temporary, images, category_ids)
    return len(results)


def write_masks(results: Path, images: "Sequence[TestImage]", folder: Path, min_score: float) -> int:
    """Write a label image for each test image of a checked results file, as ``folder/<name>.tif``; how many.

    Numbers are those of the cells by score; where they overlap, the higher score wins.

    Args:
        min_score: cells below it are left out.
    """
    import numpy as np

    from cellseg.data.detections import Detections
    from cellseg.inference.outputs.cells import number_cells
    from cellseg.inference.outputs.inputs import unique_names
    from cellseg.inference.outputs.writers import write_label_image

    records: dict[int, list[dict[str, Any]]] = {}
    for record in json.loads(results.read_text(encoding="utf-8")):
        if record["score"] >= min_score:
            records.setdefault(record["image_id"], []).append(record)
    present = [image for image in images if image.path is not None]
    for image, name in zip(present, unique_names([Path(image.file_name) for image in present]), strict=True):
        own = records.get(image.image_id, [])
        found = Detections(
            (image.height, image.width),
            np.zeros((len(own), 4), np.float32),  # label images need no boxes
            np.array([record["score"] for record in own], np.float32),
            np.ones(len(own), np.int64),
            tuple(record["segmentation"] for record in own),
        )
        cells, labels_HW = number_cells(found)
        write_label_image(labels_HW, len(cells), folder / f"{name}.tif")
    return len(present)


def present_images(images: "Sequence[TestImage]", out: Path) -> "list[TestImage]":
    """Return the listed images whose file is there.

    Raises:
        UserError: there is none to write ``out`` from.
    """
    present = [image for image in images if image.path is not None]
    if not present:
        raise UserError(f"{out}: needs test images, but none of the {len(images)} listed ones is there. Check --data.")
    return present


def _read(
    images: "Sequence[TestImage]", data: "DataConfig", problems: list[str]
) -> "tuple[list[TestImage], list[np.ndarray]]":
    """Read the images that match the test list, and their pixels; problems of the others are added to
    ``problems``."""
    from cellseg.data.channels import PlaneChoice
    from cellseg.data.images import read_image

    listed, images_HWC = [], []
    for image in images:
        assert image.path is not None
        try:
            image_HWC = read_image(image.path, PlaneChoice.of(data))
        except UserError as error:
            problems.extend(error.problems)
            continue
        if image_HWC.shape[:2] != (image.height, image.width):
            problems.append(
                f"{image.path}: must be {image.height}x{image.width} as the test list says, but got "
                f"{image_HWC.shape[0]}x{image_HWC.shape[1]}. Fix the list or the image."
            )
            continue
        listed.append(image)
        images_HWC.append(image_HWC)
    return listed, images_HWC


def _predict(ensemble: "Ensemble", images_HWC: "list[np.ndarray]", room: "Room", out: Path) -> "list[Detections]":
    from cellseg.device import exhausted_memory
    from cellseg.errors import first_line

    try:
        return ensemble.predict(images_HWC, room=room)
    except Exception as error:
        if exhausted_memory(error) is None:
            raise
        height, width = max((image_HWC.shape[:2] for image_HWC in images_HWC), key=math.prod)
        raise UserError(
            f"{out}: each test image must fit into memory, but got one of up to {height} x {width} px that does not "
            f"({first_line(error)}). "
            "Predict with --device cpu, or train with inference.tile set."
        ) from error


def check_results(path: Path, images: "Sequence[TestImage]", category_ids: Sequence[int]) -> None:
    """Load a results file with pycocotools as a leaderboard would, and compare it with the test list.

    ``category_ids``: those of the annotations; each detection has one of them.

    Raises:
        UserError: ids that are not listed, masks of another size than the image, scores outside [0, 1], ...
    """
    import contextlib
    import io

    from pycocotools.coco import COCO

    records = json.loads(path.read_text(encoding="utf-8"))
    sizes = {image.image_id: [image.height, image.width] for image in images}
    problems = []
    for index, record in enumerate(records):
        where = f"{path.name}: record {index} (image {record['image_id']})"
        size, category, score = record["segmentation"]["size"], record["category_id"], record["score"]
        if sizes.get(record["image_id"]) != size:
            problems.append(f"{where}: must be of a listed image and its size, but got {size}.")
        elif not (category in category_ids and 0 <= score <= 1):
            known = ", ".join(map(str, category_ids))
            problems.append(f"{where}: must have a category of {known} and a score, but got {category}, {score}.")
        elif not all(math.isfinite(value) for value in record["bbox"]):
            problems.append(f"{where}: must have a finite box, but got {record['bbox']}.")
    if problems:
        raise UserError(*problems[:10])
    if not records:  # loadRes cannot read an empty list; no detections are a legal result
        return
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image.image_id, "height": image.height, "width": image.width} for image in images],
        "categories": [{"id": category, "name": str(category)} for category in category_ids],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        loaded = coco.loadRes(str(path))
    assert len(loaded.anns) == len(records)  # loadRes decoded every mask to measure its area
