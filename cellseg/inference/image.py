"""One image to detections: at one scale or several, whole or in tiles.

Shape suffixes: H height, W width, C colour channels, N detections, M side of a mask, 4 = x1, y1, x2, y2 in pixels of
the image, with exclusive right and bottom edge.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cellseg.checkpoint import Checkpoint
    from cellseg.config import InferenceConfig, TrialConfig
    from cellseg.data.detections import Detections
    from cellseg.inference.tiles import Window


def load_model(checkpoint: "Checkpoint", device: "torch.device | str" = "cpu") -> "nn.Module":
    """Load the trained model of a checkpoint onto ``device``, in evaluation mode.

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

    With ``inference.tile`` the model sees a large image in tiles, merged by
    :func:`cellseg.inference.tiles.merge_tiles`. With several ``inference.scales`` it sees the image at each of them;
    what it finds is merged as it merges detections itself, by ``inference.nms`` and up to
    ``model.detections_per_image`` (for each tile). A cell keeps the mask that was predicted with it.

    Beyond what the network needs, memory is that of the scaled image, of the masks found in one tile, 28 x 28 values
    each, and of the largest box.

    Args:
        model: in evaluation mode; its parameters' device does the work.
        image_HWC: (H, W, 3) uint8 RGB of any size, as :func:`cellseg.data.images.to_rgb` makes it. It is brought to the
            scale and colour the model was trained on.
        config: resolved by :func:`cellseg.data.auto.resolve_auto`.
    """
    from cellseg.config import parse_numbers
    from cellseg.data.resize import multiply_size, scaled_size, to_color
    from cellseg.inference.tiles import concatenate, tile_windows

    # Pixels of another type would go through as numbers of the wrong size, and give wrong cells without a word.
    assert image_HWC.dtype == np.uint8, f"to_rgb comes first, but got {image_HWC.dtype}"
    assert image_HWC.ndim == 3 and image_HWC.shape[2] == 3, f"to_rgb comes first, but got {image_HWC.shape}"
    inference = config.inference
    height, width = image_HWC.shape[:2]
    size = scaled_size(height, width, config.data)
    colored_HWC = to_color(image_HWC, config.data.color)
    # Factors of a tiny image may come to the same size: a dict holds each once, in order.
    sizes = dict.fromkeys(multiply_size(size, factor) for factor in parse_numbers(inference.scales, "factors"))
    windows = [tile_windows(*of_scale, inference.tile, inference.tile_overlap) for of_scale in sizes]
    found = [_predict_at(model, colored_HWC, *at, inference) for at in zip(sizes, windows, strict=True)]
    if len(found) == 1:
        return found[0]
    per_tile = config.model.detections_per_image
    assert isinstance(per_tile, int), "resolve_auto comes first"
    return _suppress(concatenate(found), inference, per_tile * max(map(len, windows)))


def _predict_at(
    model: "nn.Module",
    image_HWC: np.ndarray,
    size: tuple[int, int],
    windows: "list[Window]",
    inference: "InferenceConfig",
) -> "Detections":
    """What the model finds in ``image_HWC`` scaled to ``size`` and seen through ``windows``, in pixels of the image as
    it came."""
    from cellseg.data.detections import Detections
    from cellseg.data.resize import resize_image
    from cellseg.inference.paste import paste_masks
    from cellseg.inference.tiles import TileDetections, merge_tiles

    height, width = image_HWC.shape[:2]
    to_image_4 = np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)
    scaled_HWC = resize_image(image_HWC, size)
    tiles = []
    for window in windows:
        left, top, right, bottom = window
        found = _detect(model, scaled_HWC[top:bottom, left:right])
        boxes_N4 = found["boxes"] + np.array([left, top] * 2, dtype=np.float32)
        boxes_N4 *= to_image_4
        # Run lengths are all that is kept of the masks: those of all tiles and scales would be much larger.
        rles = paste_masks(found["masks"][:, 0], boxes_N4, height, width, inference.mask_threshold)
        cells = Detections((height, width), boxes_N4, found["scores"], found["labels"], tuple(rles))
        x1, y1, x2, y2 = np.rint(window * to_image_4).astype(int).tolist()
        tiles.append(TileDetections((x1, y1, x2, y2), cells))
    merged = merge_tiles(tiles)
    # Within a tile hard suppression has left no such boxes. Soft has lowered scores there, and would do it again.
    if len(tiles) > 1 and inference.nms == "hard":
        merged = _suppress(merged, inference, len(merged))
    return merged


def _detect(model: "nn.Module", image_HWC: np.ndarray) -> dict[str, np.ndarray]:
    """What the model finds in ``image_HWC``: boxes (N, 4) in its pixels, scores (N,), labels (N,) and masks (N, 1, M,
    M)."""
    import torch

    device = next(model.parameters()).device
    tensor_CHW = torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1))).to(device).float().div_(255)
    with torch.inference_mode():
        return {name: value.cpu().numpy() for name, value in model([tensor_CHW])[0].items()}


def _suppress(found: "Detections", inference: "InferenceConfig", limit: int) -> "Detections":
    """Keep the detections that ``inference.nms`` leaves, with the scores they have then, best first."""
    import torch

    from cellseg.model.nms import suppress

    boxes_N4, scores_N, labels_N = map(torch.from_numpy, (found.boxes_N4, found.scores_N, found.labels_N))
    kept_K, scores_K = suppress(boxes_N4, scores_N, labels_N, inference, limit)
    return replace(found.select(kept_K.numpy()), scores_N=scores_K.numpy())


def predict_images(model: "nn.Module", images: Iterable[np.ndarray], config: "TrialConfig") -> "list[Detections]":
    """:func:`predict_image` for each of ``images``; the model's mode is restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        return [predict_image(model, image_HWC, config) for image_HWC in images]
    finally:
        model.train(was_training)
