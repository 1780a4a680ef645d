"""Masks as COCO run-length encodings, made from the window a cell lies in.

An RLE here is pycocotools' compressed form, ``{"size": [height, width], "counts": bytes}``: the lengths of alternating
runs of background and cell, column by column. A cell has a few dozen runs whatever the size of the image, so nothing
here ever builds an array of the image's size per cell.

Shape suffixes: H height and W width of the image, h and w of a window in it, N cells, M side of a square mask,
4 = x1, y1, x2, y2 in pixels with exclusive right and bottom edge.
"""

import numpy as np
from pycocotools import mask as coco_mask

from cellseg.data.planes import Instances, read_instances
from cellseg.data.sample import Sample


def encode_window(mask_hw: np.ndarray, top: int, left: int, height: int, width: int) -> dict:
    """RLE of a mask that is known inside a window of an image and empty outside of it.

    Args:
        mask_hw: (h, w) bool; may be empty or without a set pixel.
        top, left: row and column of the mask's corner in the image; may be negative.
        height, width: size of the image in pixels. Parts of the mask beyond it are cut off.

    Returns:
        ``{"size": [height, width], "counts": bytes}``, bit for bit what pycocotools makes of the whole image's mask.
    """
    mask_hw = mask_hw[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    top, left = max(top, 0), max(left, 0)
    # A frame of background above and below each column makes every run start and end inside its own column.
    columns_wh = np.zeros((mask_hw.shape[1], mask_hw.shape[0] + 2), dtype=bool)
    columns_wh[:, 1:-1] = mask_hw.T
    column, row = np.nonzero(columns_wh[:, 1:] != columns_wh[:, :-1])
    edges = (left + column) * height + top + row
    # A run that reaches the image's bottom edge goes on where the next column starts at the top edge.
    joined = np.nonzero(edges[1:] == edges[:-1])[0]
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    # pycocotools writes no empty last run.
    ends = [] if edges.size and edges[-1] == height * width else [height * width]
    counts = np.diff(np.concatenate([[0], edges, ends]).astype(np.int64))
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def encode_instances(planes_PHW: np.ndarray, instances: Instances) -> list[dict]:
    """RLEs of cells that :func:`cellseg.data.planes.read_instances` found in ``planes_PHW``, in the same order."""
    _, height, width = planes_PHW.shape
    windows = zip(instances.boxes_N4.astype(int), instances.plane_N, instances.numbers_N, strict=True)
    return [
        encode_window(planes_PHW[plane, top:bottom, left:right] == number, int(top), int(left), height, width)
        for (left, top, right, bottom), plane, number in windows
    ]


def encode_sample(sample: Sample) -> list[dict]:
    """RLE of each cell of ``sample``, in the order of its numbers; an empty list for a sample without cells."""
    return encode_instances(sample.planes_PHW, read_instances(sample.planes_PHW, sample.labels_N))


def paste_masks(
    probabilities_NMM: np.ndarray, boxes_N4: np.ndarray, height: int, width: int, threshold: float
) -> list[dict]:
    """RLEs of predicted masks, each stretched over its box and cut at ``threshold``.

    Bit for bit ``paste_masks_in_image(...) >= threshold`` of torchvision, encoded; but each mask is built only in its
    own box, so memory is that of the largest box.

    Args:
        probabilities_NMM: (N, M, M) float32 in [0, 1], the mask head's probabilities. N may be 0.
        boxes_N4: (N, 4) float32; may cross the image's border or be thinner than a pixel. One outside of the image has
            no pixel.
        height, width: size of the image in pixels.
        threshold: in (0, 1]; a pixel belongs to the cell where its probability is at least this.
    """
    import torch
    from torch.nn.functional import interpolate
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

    assert threshold > 0, "at threshold 0 the whole image would belong to every cell"
    # torchvision surrounds each mask with a pixel of background, so that its edge can fall off inside the box. One at a
    # time: a copy of all masks would be the largest thing here once PointRend has refined them.
    masks_N1MM = torch.from_numpy(probabilities_NMM)[:, None]
    _, scale = expand_masks(masks_N1MM[:0], padding=1)
    corners_N4 = expand_boxes(torch.from_numpy(boxes_N4), scale).to(torch.int64).tolist()
    rles = []
    for mask_1MM, (left, top, right, bottom) in zip(masks_N1MM, corners_N4, strict=True):
        framed_11MM, _ = expand_masks(mask_1MM[None], padding=1)
        h, w = max(bottom - top + 1, 0), max(right - left + 1, 0)
        mask_hw = interpolate(framed_11MM, size=(max(h, 1), max(w, 1)), mode="bilinear", align_corners=False)[0, 0]
        rles.append(encode_window((mask_hw >= threshold)[:h, :w].numpy(), top, left, height, width))
    return rles


def to_json_rle(rle: dict) -> dict:
    """``rle`` with its counts as text, as JSON and COCO's result files want it."""
    height, width = rle["size"]
    return {"size": [int(height), int(width)], "counts": rle["counts"].decode("ascii")}


def decode(rle: dict) -> np.ndarray:
    """(H, W) bool mask of an RLE, with its counts as bytes or as text."""
    return coco_mask.decode(rle).astype(bool)
