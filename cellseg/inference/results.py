"""COCO results of the listed test images: the file that a leaderboard takes, written and checked."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.errors import UserError
from cellseg.files import atomic_path
from cellseg.inference.image import load_model, predict_image

if TYPE_CHECKING:
    import torch

    from cellseg.checkpoint import Checkpoint
    from cellseg.data.testset import TestImage


def write_results(
    checkpoint: "Checkpoint",
    images: "Sequence[TestImage]",
    out: Path,
    *,
    device: "torch.device | str" = "cpu",
    on_image: Callable[[int, int], None] | None = None,
) -> int:
    """Predict test images and write COCO results (RLE masks) to ``out``; the number of detections.

    Classes are written as the category ids of the annotations that the model was trained on. Every listed image whose
    file is there is predicted; the caller decides about absent ones. The file is read back with pycocotools against the
    list before it takes its name.

    Raises:
        UserError: an unreadable image, a size that differs from the list's, or no image at all.
    """
    from cellseg.data.images import read_image

    present = [image for image in images if image.path is not None]
    if not present:
        raise UserError(f"{out}: needs test images, but none of the {len(images)} listed ones is there. Check --data.")
    model = load_model(checkpoint, device)
    config, category_ids = checkpoint.config, checkpoint.info.category_ids
    problems: list[str] = []
    results: list[dict[str, Any]] = []
    for done, image in enumerate(present, start=1):
        assert image.path is not None
        try:
            image_HWC = read_image(image.path)
        except UserError as error:
            problems.extend(error.problems)
            continue
        if image_HWC.shape[:2] != (image.height, image.width):
            problems.append(
                f"{image.path}: must be {image.height}x{image.width} as the test list says, but got "
                f"{image_HWC.shape[0]}x{image_HWC.shape[1]}. Fix the list or the image."
            )
            continue
        results.extend(predict_image(model, image_HWC, config).to_coco_results(image.image_id, category_ids))
        if on_image is not None:
            on_image(done, len(present))
    if problems:
        raise UserError(*problems)
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(results, allow_nan=False), encoding="utf-8")
        check_results(temporary, images, category_ids)
    return len(results)


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
