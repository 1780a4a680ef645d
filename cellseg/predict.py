"""Images to detections: ``python -m cellseg.predict CHECKPOINT ROOT OUT.json``.

Shape suffixes: H height, W width, C colour channels, N detections, M side of a mask, 4 = x1, y1, x2, y2 in pixels of
the image, with exclusive right and bottom edge.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellseg.cli import EXIT_OK, run_command, say

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cellseg.checkpoint import Checkpoint
    from cellseg.config import TrialConfig
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

    With several ``inference.scales`` the model sees the image at each of them; what it finds is merged as it merges
    detections itself, by ``inference.nms`` and up to ``model.detections_per_image``. A cell keeps the mask that was
    predicted with it.

    Args:
        model: in evaluation mode; its parameters' device does the work.
        image_HWC: (H, W, 3) uint8 RGB of any size. It is brought to the scale and colour the model was trained on.
        config: resolved by :func:`cellseg.auto.resolve_auto`.
    """
    from cellseg.config import parse_numbers
    from cellseg.data.resize import multiply_size, scaled_size, to_color
    from cellseg.detections import Detections
    from cellseg.rle import paste_masks

    height, width = image_HWC.shape[:2]
    size = scaled_size(height, width, config.data)
    colored_HWC = to_color(image_HWC, config.data.color)
    # Factors of a tiny image may come to the same size: a dict holds each once, in order.
    sizes = dict.fromkeys(multiply_size(size, factor) for factor in parse_numbers(config.inference.scales, "factors"))
    found = [_detect(model, colored_HWC, size) for size in sizes]
    merged = found[0] if len(found) == 1 else _merge(found, config)
    rles = paste_masks(merged["masks"][:, 0], merged["boxes"], height, width, config.inference.mask_threshold)
    return Detections(
        size=(height, width),
        boxes_N4=merged["boxes"],
        scores_N=merged["scores"],
        labels_N=merged["labels"],
        rles=tuple(rles),
    )


def _detect(model: "nn.Module", image_HWC: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What the model finds in ``image_HWC`` scaled to ``size``: boxes (N, 4) in pixels of the image as it came, scores
    (N,), labels (N,) and masks (N, 1, M, M)."""
    import torch

    from cellseg.data.resize import resize_image

    height, width = image_HWC.shape[:2]
    scaled_HWC = resize_image(image_HWC, size)
    device = next(model.parameters()).device
    tensor_CHW = torch.from_numpy(np.ascontiguousarray(scaled_HWC.transpose(2, 0, 1))).to(device).float() / 255
    with torch.inference_mode():
        found = {name: value.cpu().numpy() for name, value in model([tensor_CHW])[0].items()}
    found["boxes"] = found["boxes"] * np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)
    return found


def _merge(found: list[dict[str, np.ndarray]], config: "TrialConfig") -> dict[str, np.ndarray]:
    """The detections of several scales as those of one, best first."""
    import torch

    from cellseg.model.nms import suppress

    limit = config.model.detections_per_image
    assert isinstance(limit, int), "resolve_auto comes first"
    together = {name: np.concatenate([of_scale[name] for of_scale in found]) for name in found[0]}
    boxes_N4, scores_N, labels_N = (torch.from_numpy(together[name]) for name in ("boxes", "scores", "labels"))
    kept_K, scores_K = suppress(boxes_N4, scores_N, labels_N, config.inference, limit)
    return {name: values[kept_K.numpy()] for name, values in together.items()} | {"scores": scores_K.numpy()}


def predict_images(model: "nn.Module", images: Iterable[np.ndarray], config: "TrialConfig") -> "list[Detections]":
    """:func:`predict_image` for each of ``images``; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        return [predict_image(model, image_HWC, config) for image_HWC in images]
    finally:
        model.train(was_training)


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
    from cellseg.results import write_results

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
