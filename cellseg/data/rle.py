"""COCO run-length encodings of masks, made from the window around a cell.

An RLE here is pycocotools' compressed form, ``{"size": [height, width], "counts": bytes}``: the lengths of alternating
runs of background and cell, column by column. A cell has a few dozen runs whatever the size of the image, so nothing
here ever builds an array of the image's size per cell.

Shape suffixes: H height and W width of the image, h and w of a window in it, N cells,
4 = x1, y1, x2, y2 in pixels with exclusive right and bottom edge.
"""

import numpy as np
from pycocotools import mask as coco_mask

from cellseg.data.planes import Instances, read_instances
from cellseg.data.sample import Sample


def encode_window(mask_hw: np.ndarray, top: int, left: int, height: int, width: int) -> dict:
    """Encode a mask that is known inside a window of an image and empty outside of it.

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
    """Encode the cells that :func:`cellseg.data.planes.read_instances` found in ``planes_PHW``, in the same order."""
    _, height, width = planes_PHW.shape
    windows = zip(instances.boxes_N4.astype(int), instances.plane_N, instances.numbers_N, strict=True)
    return [
        encode_window(planes_PHW[plane, top:bottom, left:right] == number, int(top), int(left), height, width)
        for (left, top, right, bottom), plane, number in windows
    ]


def encode_sample(sample: Sample) -> list[dict]:
    """Encode each cell of ``sample``, in the order of its numbers; an empty list for a sample without cells."""
    return encode_instances(sample.planes_PHW, read_instances(sample.planes_PHW, sample.labels_N))


def to_json_rle(rle: dict) -> dict:
    """Convert the counts of ``rle`` to text, as JSON and COCO's result files need them."""
    height, width = rle["size"]
    return {"size": [int(height), int(width)], "counts": rle["counts"].decode("ascii")}


def decode(rle: dict) -> np.ndarray:
    """Decode an RLE, with its counts as bytes or as text, into an (H, W) bool mask."""
    return coco_mask.decode(rle).astype(bool)
