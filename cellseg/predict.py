"""Images to detections, and the file a leaderboard takes: ``python -m cellseg.predict CHECKPOINT ROOT OUT.json``."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.files import atomic_path

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cellseg.checkpoint import Checkpoint
    from cellseg.config import TrialConfig
    from cellseg.data.testset import TestImage
    from cellseg.detections import Detections


def load_model(checkpoint: "Checkpoint", device: "torch.device | str" = "cpu") -> "nn.Module":
    """The trained model of a checkpoint, in evaluation mode on ``device``.

    Raises:
        UserError: damaged weights.
    """
    from cellseg.model.build import build_model

    config = checkpoint.config
    model = build_model(config.model, config.inference, len(checkpoint.info.class_names), load=False)
    model.load_state_dict(checkpoint.load_weights())
    return model.to(device).eval()


def predict_image(model: "nn.Module", image_HWC: np.ndarray, config: "TrialConfig") -> "Detections":
    """The cells of one image, in its own pixels.

    Args:
        model: in evaluation mode; its parameters' device does the work.
        image_HWC: (H, W, 3) uint8 RGB of any size. It is brought to the scale and colour the model was trained on.
    """
    import torch

    from cellseg.data.resize import resize_image, scaled_size, to_color
    from cellseg.detections import Detections
    from cellseg.rle import paste_masks

    height, width = image_HWC.shape[:2]
    size = scaled_size(height, width, config.data)
    scaled_HWC = resize_image(to_color(image_HWC, config.data.color), size)
    device = next(model.parameters()).device
    tensor_CHW = torch.from_numpy(np.ascontiguousarray(scaled_HWC.transpose(2, 0, 1))).to(device).float() / 255
    with torch.inference_mode():
        found = {name: value.cpu().numpy() for name, value in model([tensor_CHW])[0].items()}
    boxes_N4 = found["boxes"] * np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)
    rles = paste_masks(found["masks"][:, 0], boxes_N4, height, width, config.inference.mask_threshold)
    return Detections(
        size=(height, width),
        boxes_N4=boxes_N4,
        scores_N=found["scores"],
        labels_N=found["labels"],
        rles=tuple(rles),
    )


def predict_images(model: "nn.Module", images: Iterable[np.ndarray], config: "TrialConfig") -> "list[Detections]":
    """:func:`predict_image` for each of ``images``; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        return [predict_image(model, image_HWC, config) for image_HWC in images]
    finally:
        model.train(was_training)


def write_results(
    checkpoint: "Checkpoint",
    images: "Sequence[TestImage]",
    out: Path,
    *,
    device: "torch.device | str" = "cpu",
    on_image: Callable[[int, int], None] | None = None,
) -> int:
    """Predict test images and write COCO results (RLE masks) to ``out``; the number of detections.

    Every listed image whose file is there is predicted; the caller decides about absent ones. The file is read back
    with pycocotools against the list before it takes its name.

    Raises:
        UserError: an unreadable image, a size that differs from the list's, or no image at all.
    """
    from cellseg.data.tiff import read_image

    present = [image for image in images if image.path is not None]
    if not present:
        raise UserError(f"{out}: needs test images, but none of the {len(images)} listed ones is there. Check --data.")
    model = load_model(checkpoint, device)
    config = checkpoint.config
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
                f"{image_HWC.shape[0]}x{image_HWC.shape[1]}. Mend the list or the image."
            )
            continue
        results.extend(predict_image(model, image_HWC, config).to_coco_results(image.image_id))
        if on_image is not None:
            on_image(done, len(present))
    if problems:
        raise UserError(*problems)
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(results, allow_nan=False), encoding="utf-8")
        check_results(temporary, images, len(checkpoint.info.class_names))
    return len(results)


def check_results(path: Path, images: "Sequence[TestImage]", num_classes: int) -> None:
    """Load a results file with pycocotools as a leaderboard would, and compare it with the test list.

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
        size, label, score = record["segmentation"]["size"], record["category_id"], record["score"]
        if sizes.get(record["image_id"]) != size:
            problems.append(f"{where}: must be of a listed image and its size, but got {size}.")
        elif not (1 <= label <= num_classes and 0 <= score <= 1):
            problems.append(f"{where}: must have a class up to {num_classes} and a score, but got {label}, {score}.")
        elif not all(math.isfinite(value) for value in record["bbox"]):
            problems.append(f"{where}: must have a finite box, but got {record['bbox']}.")
    if problems:
        raise UserError(*problems[:10])
    if not records:  # loadRes cannot read an empty list; no detections are a legal result
        return
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image.image_id, "height": image.height, "width": image.width} for image in images],
        "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        loaded = coco.loadRes(str(path))
    assert len(loaded.anns) == len(records)  # loadRes decoded every mask to measure its area


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellseg.predict", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    parser.add_argument("root", type=Path, help="data set with test_release/ and test_image_name_to_ids.json")
    parser.add_argument("out", type=Path, help="the COCO results file to write")
    parser.add_argument("--device", default=None, help="cuda, cuda:1 or cpu; default: a GPU where there is one")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.checkpoint import open_checkpoint
    from cellseg.data.testset import describe_absent, read_test_list
    from cellseg.device import pick_device

    checkpoint = open_checkpoint(arguments.checkpoint)
    images = read_test_list(arguments.root)
    count = write_results(checkpoint, images, arguments.out, device=pick_device(arguments.device))
    if missing := describe_absent(images):
        say(missing)
    num_predicted = sum(image.path is not None for image in images)
    say(f"{arguments.out}: {count} detections on {num_predicted} images")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
