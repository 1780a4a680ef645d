"""Predicted masks in the pixels of the image, each pasted inside its own box.

Shape suffixes: h height and w width of a box, N cells, M side of a square mask, 4 = x1, y1, x2, y2 in pixels with
exclusive right and bottom edge.
"""

import math
from collections.abc import Iterator

import numpy as np

from cellseg.data.rle import encode_window

Window = tuple[np.ndarray, int, int]
"""Probabilities (h, w) float32, and row and column of their corner in the image; may cross its border."""


def paste_masks(
    probabilities_NMM: np.ndarray,
    boxes_N4: np.ndarray,
    height: int,
    width: int,
    threshold: float,
    alignment: str = "torchvision",
    shift: tuple[float, float] = (0.5, 0.5),
) -> list[dict]:
    """Encode predicted masks as RLEs, each stretched over its box and cut at ``threshold``.

    Each mask is built only in its own box, so memory is that of the largest box.

    Args:
        probabilities_NMM, boxes_N4, alignment, shift: see :func:`paste_probabilities`.
        height, width: size of the image in pixels.
        threshold: in (0, 1]; a pixel belongs to the cell where its probability is at least this.
    """
    assert threshold > 0, "at threshold 0 the whole image would belong to every cell"
    return [
        encode_window(mask_hw >= threshold, top, left, height, width)
        for mask_hw, top, left in paste_probabilities(probabilities_NMM, boxes_N4, alignment, shift)
    ]


def paste_probabilities(
    probabilities_NMM: np.ndarray,
    boxes_N4: np.ndarray,
    alignment: str = "torchvision",
    shift: tuple[float, float] = (0.5, 0.5),
) -> Iterator[Window]:
    """Stretch predicted masks over their boxes, one at a time.

    Args:
        probabilities_NMM: (N, M, M) float32 in [0, 1], the mask head's probabilities. N may be 0.
        boxes_N4: (N, 4) float32; may cross the image's border or be thinner than a pixel. One outside of the image has
            no pixel.
        alignment: that of training, ``model.mask_alignment``. ``torchvision``: bit for bit its
            ``paste_masks_in_image``, whose boxes have whole pixels as corners. ``aligned``: bin i of a side of length s
            covers i s / M to (i + 1) s / M, and a pixel has the value at its centre, interpolated between bins; at the
            edge of the box it falls off to a half, as in detectron2. ``shifted``: the same where the targets of
            ``torchvision`` were read, which is ``shift`` further on; pixels before the first bin have its value, and
            those whose centre is outside of the box have none.
        shift: x and y in pixels of the image: half a pixel of the network's input.
    """
    if alignment == "torchvision":
        yield from _paste_as_torchvision(probabilities_NMM, boxes_N4)
        return
    shift_x, shift_y = shift if alignment == "shifted" else (None, None)
    for mask_MM, (x1, y1, x2, y2) in zip(probabilities_NMM, boxes_N4.astype(float).tolist(), strict=True):
        top, rows_hM = _bin_weights(y1, y2, mask_MM.shape[0], shift_y)
        left, columns_wM = _bin_weights(x1, x2, mask_MM.shape[1], shift_x)
        yield rows_hM @ mask_MM @ columns_wM.T, top, left


def _bin_weights(start: float, stop: float, num_bins: int, shift: float | None) -> tuple[int, np.ndarray]:
    """Return the first pixel that a box reaches along an axis, and the weights (pixels, bins) float32 of its bins."""
    first, last = math.floor(start), math.ceil(stop)
    centre_h = np.arange(first, last) + 0.5
    bins_per_pixel = num_bins / max(stop - start, 1e-6)
    inside_h = np.ones(len(centre_h), bool)
    place_h = (centre_h - start) * bins_per_pixel - 0.5
    if shift is not None:
        inside_h = (centre_h >= start) & (centre_h <= stop)
        place_h = (place_h - shift * bins_per_pixel).clip(0, num_bins - 1)
    distance_hM = np.abs(place_h[:, None] - np.arange(num_bins))
    return first, ((1 - distance_hM).clip(min=0) * inside_h[:, None]).astype(np.float32)


def _paste_as_torchvision(probabilities_NMM: np.ndarray, boxes_N4: np.ndarray) -> Iterator[Window]:
    import torch
    from torch.nn.functional import interpolate
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

    # torchvision surrounds each mask with a pixel of background, so that its edge can fall off inside the box. One at a
    # time: a copy of all masks would be the largest thing here once PointRend has refined them.
    masks_N1MM = torch.from_numpy(probabilities_NMM)[:, None]
    _, scale = expand_masks(masks_N1MM[:0], padding=1)
    corners_N4 = expand_boxes(torch.from_numpy(boxes_N4), scale).to(torch.int64).tolist()
    for mask_1MM, (left, top, right, bottom) in zip(masks_N1MM, corners_N4, strict=True):
        framed_11MM, _ = expand_masks(mask_1MM[None], padding=1)
        h, w = max(bottom - top + 1, 0), max(right - left + 1, 0)
        mask_hw = interpolate(framed_11MM, size=(max(h, 1), max(w, 1)), mode="bilinear", align_corners=False)[0, 0]
        yield mask_hw[:h, :w].numpy(), top, left
