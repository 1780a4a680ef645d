"""Images to detections: at one scale or several, whole or in tiles, one at a time or together.

Shape suffixes: H height, W width, C colour channels, N detections, M side of a mask, 4 = x1, y1, x2, y2 in pixels of
the image, with exclusive right and bottom edge.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cellseg.checkpoint import Checkpoint
    from cellseg.config import InferenceConfig, TrialConfig
    from cellseg.data.detections import Detections
    from cellseg.device import Room
    from cellseg.inference.tiles import TileDetections, Window
    from cellseg.inference.views import View


def load_model(
    checkpoint: "Checkpoint", device: "torch.device | str" = "cpu", inference: "InferenceConfig | None" = None
) -> "nn.Module":
    """Load the trained model of a checkpoint onto ``device``, in evaluation mode.

    Args:
        inference: how it predicts, if not as the checkpoint says.

    Raises:
        UserError: damaged weights.
    """
    from cellseg.model.build import build_model

    config = checkpoint.config
    model = build_model(config.model, inference or config.inference, len(checkpoint.info.class_names), load=False)
    model.load_state_dict(checkpoint.load_weights())
    return model.to(device).eval()


Scale = Callable[[int, tuple[int, int]], np.ndarray]
"""(position, (height, width)) -> that image as the network sees it at that size: (height, width, 3) uint8."""


def predict_image(model: "nn.Module", image_HWC: np.ndarray, config: "TrialConfig") -> "Detections":
    """The cells of one image, in its own pixels; see :func:`predict_images`."""
    (found,) = predict_images(model, [image_HWC], config)
    return found


def predict_images(
    model: "nn.Module",
    images: Iterable[np.ndarray],
    config: "TrialConfig",
    *,
    room: "Room | None" = None,
    scale: Scale | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
    soft: bool = False,
) -> "list[Detections]":
    """The cells of each image, in its own pixels. The model is put into evaluation mode and back.

    With ``inference.tile`` the model sees a large image in tiles, merged by
    :func:`cellseg.inference.tiles.merge_tiles`. With several ``inference.scales`` or ``inference.turns`` it sees the
    image in each of these views; what it finds is fused by :func:`cellseg.inference.fusion.fuse`, up to
    ``model.detections_per_image`` (for each tile).

    On a GPU, images and tiles of equal size go through the network together, as many as ``room`` allows, and the
    backbone uses the mixed precision of training; proposals, boxes, scores and masks are float32. No image is padded
    to the size of another, so each is predicted as if alone.

    Besides the network, memory holds the scaled images of one batch, their masks of 28 x 28 values each, and the
    largest box; with several views or ``soft``, also a byte for each pixel of each box.

    Args:
        model: its parameters' device does the work.
        images: (H, W, 3) uint8 RGB of any size, as :func:`cellseg.data.images.to_rgb` makes them. They are
            converted to the scale and colour of training.
        config: resolved by :func:`cellseg.data.auto.resolve_auto`.
        room: the memory limit found so far; updated. None: start with the default.
        scale: provides the images as the network sees them. None: scale them here.
        on_tiles: called with (tiles done, all tiles) of the images that go through the network together.
        soft: return soft masks too.

    Raises:
        torch.OutOfMemoryError, ...: an image or tile does not fit into memory by itself.
    """
    from cellseg.config import parse_numbers
    from cellseg.data.resize import multiply_size, resize_image, scaled_size, to_color
    from cellseg.device import Room, autocast_dtype
    from cellseg.inference.fusion import fuse
    from cellseg.inference.postprocess import at_least
    from cellseg.inference.tiles import tile_windows
    from cellseg.inference.views import View, turns_of

    images = list(images)
    for image_HWC in images:  # other types would silently give wrong cells
        assert image_HWC.dtype == np.uint8, f"to_rgb comes first, but got {image_HWC.dtype}"
        assert image_HWC.ndim == 3 and image_HWC.shape[2] == 3, f"to_rgb comes first, but got {image_HWC.shape}"
    inference = config.inference
    device = next(model.parameters()).device
    room = room or Room.of(device)
    amp_dtype = autocast_dtype(config.train.amp, device)
    scale = scale or (lambda index, size: resize_image(to_color(images[index], config.data.color), size))
    of_size: dict[tuple[int, int], list[int]] = {}
    for index, image_HWC in enumerate(images):
        of_size.setdefault(image_HWC.shape[:2], []).append(index)

    found: dict[int, Detections] = {}
    with _evaluating(model):
        for own_size, indices in of_size.items():
            size = scaled_size(*own_size, config.data)
            # Factors of a tiny image may come to the same size: a dict holds each once, in order.
            sizes = dict.fromkeys(multiply_size(size, factor) for factor in parse_numbers(inference.scales, "factors"))
            views = [View(turn, of_scale) for of_scale in sizes for turn in turns_of(inference.turns)]
            windows = [tile_windows(*view.shown_size, inference.tile, inference.tile_overlap) for view in views]
            per_tile = config.model.detections_per_image
            assert isinstance(per_tile, int), "resolve_auto comes first"
            limit = per_tile * max(map(len, windows))
            exact = inference.mask_pasting == "exact" and config.model.mask_alignment == "torchvision"
            pasting = "shifted" if exact else config.model.mask_alignment
            needs_soft = soft or len(views) > 1
            for together in batched(indices, room.count(max(math.prod(of_scale) for of_scale in sizes))):
                progress = None
                if on_tiles is not None:
                    progress = _Progress(len(together) * sum(map(len, windows)), on_tiles)
                detector = _Detector(model, amp_dtype, room, inference, own_size, needs_soft, pasting, progress)
                by_view = [
                    detector.find([scale(index, view.scaled_size) for index in together], view, windows_of_view)
                    for view, windows_of_view in zip(views, windows, strict=True)
                ]
                for index, votes in zip(together, zip(*by_view, strict=True), strict=True):
                    fused = at_least(fuse(votes, inference, limit), inference.min_area)
                    found[index] = fused if soft else replace(fused, soft=None)
    return [found[index] for index in range(len(images))]


class _Progress:
    """Counts tiles, and tells the caller."""

    def __init__(self, count: int, on_tiles: Callable[[int, int], None]):
        self.done, self.count = 0, count
        self._on_tiles = on_tiles

    def add(self, tiles: int) -> None:
        self.done += tiles
        self._on_tiles(self.done, self.count)


@dataclass(frozen=True)
class _Detector:
    """Finds the cells of images of one size."""

    model: "nn.Module"
    amp_dtype: "torch.dtype | None"
    room: "Room"
    inference: "InferenceConfig"
    size: tuple[int, int]
    """(height, width) of the original images; detections are in these pixels."""
    soft: bool
    """Whether detections have soft masks."""
    pasting: str
    """See :func:`cellseg.inference.paste.paste_probabilities`."""
    progress: _Progress | None = None

    def find(self, scaled: list[np.ndarray], view: "View", windows: "list[Window]") -> "list[Detections]":
        """Find the cells in each of the ``scaled`` images, turned and seen through ``windows``."""
        from cellseg.inference.fusion import suppressed
        from cellseg.inference.tiles import merge_tiles

        def tiles_of(views: "Sequence[tuple[np.ndarray, Window]]") -> "list[TileDetections]":
            shown = [shown_HWC[top:bottom, left:right] for shown_HWC, (left, top, right, bottom) in views]
            found = detect(self.model, shown, self.amp_dtype)
            tiles = [self._tile(raw, window, view) for raw, (_, window) in zip(found, views, strict=True)]
            if self.progress is not None:
                self.progress.add(len(tiles))
            return tiles

        left, top, right, bottom = windows[0]  # all are of one size
        views = [(view.turn.apply(scaled_HWC), window) for scaled_HWC in scaled for window in windows]
        tiles = self.room.map(tiles_of, views, (right - left) * (bottom - top))
        merged = [merge_tiles(tiles_of_image) for tiles_of_image in batched(tiles, len(windows))]
        # Within a tile hard suppression has left no such boxes. Soft has lowered scores there, and would do it again.
        if len(windows) > 1 and self.inference.nms == "hard":
            merged = [suppressed(found, self.inference, len(found)) for found in merged]
        return [view.turn.undo(found, self.inference.mask_threshold) for found in merged]

    def _tile(self, found: dict[str, np.ndarray], window: "Window", view: "View") -> "TileDetections":
        """Convert a tile's detections to pixels of the original image, turned as the view is."""
        from cellseg.data.detections import Detections
        from cellseg.data.softmask import SoftMask
        from cellseg.inference.paste import paste_masks, paste_probabilities
        from cellseg.inference.postprocess import mask_qualities, rescored
        from cellseg.inference.tiles import TileDetections

        size = height, width = view.turn.size(self.size)
        left, top, _, _ = window
        to_image_4 = np.array([width / view.shown_size[1], height / view.shown_size[0]] * 2, dtype=np.float32)
        boxes_N4 = found["boxes"] + np.array([left, top] * 2, dtype=np.float32)
        boxes_N4 *= to_image_4
        # What is kept of the masks are run lengths and bytes: the masks of all tiles and scales would be much larger.
        shift = float(to_image_4[0] / 2), float(to_image_4[1] / 2)
        masks_NMM, threshold, soft = found["masks"][:, 0], self.inference.mask_threshold, None
        if self.soft:
            pasted = paste_probabilities(masks_NMM, boxes_N4, self.pasting, shift)
            soft = tuple(SoftMask.of(*window_of_mask, size) for window_of_mask in pasted)
            rles = [mask.encode(threshold, size) for mask in soft]
        else:
            rles = paste_masks(masks_NMM, boxes_N4, height, width, threshold, self.pasting, shift)
        cells = Detections(size, boxes_N4, found["scores"], found["labels"], tuple(rles), soft)
        if self.inference.mask_quality:
            cells = rescored(cells, mask_qualities(masks_NMM, threshold), self.inference.mask_quality)
        x1, y1, x2, y2 = np.rint(window * to_image_4).astype(int).tolist()
        return TileDetections((x1, y1, x2, y2), cells)


def detect(
    model: "nn.Module", images: Sequence[np.ndarray], amp_dtype: "torch.dtype | None" = None
) -> list[dict[str, np.ndarray]]:
    """Detect cells in each of ``images``, (H, W, 3) uint8 and all of one size: boxes (N, 4) in their pixels,
    scores (N,), labels (N,) and masks (N, 1, M, M).

    Args:
        amp_dtype: the backbone's precision, see :func:`cellseg.device.autocast_dtype`.
    """
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        images_BHWC = torch.from_numpy(np.stack(images)).to(device)
        found = _forward(model, list(images_BHWC.permute(0, 3, 1, 2).float().div_(255)), amp_dtype)
        # One transfer of each for the whole batch: every transfer waits for the GPU.
        joined = {name: torch.cat([each[name] for each in found]).cpu().numpy() for name in found[0]}
    ends = np.cumsum([len(each["scores"]) for each in found])[:-1]
    split = {name: np.split(values, ends) for name, values in joined.items()}
    return [{name: parts[index] for name, parts in split.items()} for index in range(len(found))]


def _forward(
    model: "nn.Module", images: "list[torch.Tensor]", amp_dtype: "torch.dtype | None"
) -> "list[dict[str, torch.Tensor]]":
    """Run the model with its backbone in mixed precision and everything after it in float32."""
    import torch

    if amp_dtype is None:
        return model(images)
    detector: Any = model
    batch, _ = detector.transform(images)
    with torch.autocast(batch.tensors.device.type, dtype=amp_dtype):
        features = detector.backbone(batch.tensors)
    features = {name: map_BCHW.float() for name, map_BCHW in features.items()}
    proposals, _ = detector.rpn(batch, features)
    found, _ = detector.roi_heads(features, proposals, batch.image_sizes)
    return found


@contextmanager
def _evaluating(model: "nn.Module") -> Iterator[None]:
    """Put ``model`` into evaluation mode, and back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def batched(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield ``items`` in chunks of ``size``; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
