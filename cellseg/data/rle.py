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


def decode_window(rle: dict) -> tuple[int, int, np.ndarray]:
    """Decode an RLE into the smallest window that holds its set pixels; time and memory are those of the window.

    Args:
        rle: compressed, with its counts as bytes or as text.

    Returns:
        (top, left, mask_hw): row and column of the window's corner, and the window, bool. An empty mask has a window of
        0 x 0 pixels at (0, 0).

    Raises:
        ValueError: counts that are cut off, or do not fill the image.
    """
    height, width = (int(side) for side in rle["size"])
    counts = _run_lengths(rle["counts"])
    ends = np.cumsum(counts)
    if counts.size == 0 or counts.min() < 0 or ends[-1] != height * width:
        raise ValueError("run lengths must fill the image")
    starts_R, stops_R = ends[0:-1:2], ends[1::2]
    starts_R, stops_R = starts_R[stops_R > starts_R], stops_R[stops_R > starts_R]
    if starts_R.size == 0:
        return 0, 0, np.zeros((0, 0), dtype=bool)
    first_R, top_R = np.divmod(starts_R, height)
    last_R, bottom_R = np.divmod(stops_R - 1, height)
    if (first_R != last_R).any():  # a run that goes on at the top of the next column: cut it there
        starts_R, stops_R = _cut_at_columns(starts_R, stops_R, height)
        first_R, top_R = np.divmod(starts_R, height)
        bottom_R = (stops_R - 1) % height
    top, left = int(top_R.min()), int(first_R.min())
    h, w = int(bottom_R.max()) - top + 1, int(first_R.max()) - left + 1
    steps_wh = np.zeros((w, h + 1), dtype=np.int8)
    columns_R = first_R - left
    # Runs of a column may touch where an encoder wrote an empty run between them: then a step up meets a step down.
    np.add.at(steps_wh, (columns_R, top_R - top), 1)
    np.add.at(steps_wh, (columns_R, bottom_R - top + 1), -1)
    return top, left, np.cumsum(steps_wh[:, :h], axis=1, dtype=np.int8).T.astype(bool)


def _run_lengths(counts: bytes | str) -> np.ndarray:
    """Read pycocotools' compressed counts: (R,) int64 lengths of runs, background first.

    Each number is written in groups of five bits, lowest first, a sixth bit meaning that another group follows; from
    the fourth number on it is the difference from the number before last.
    """
    groups_G = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64)
    groups_G = groups_G - 48
    if groups_G.size == 0 or groups_G[-1] & 0x20:
        raise ValueError("run lengths end too early")
    ends_R = np.flatnonzero((groups_G & 0x20) == 0)
    starts_R = np.concatenate([[0], ends_R[:-1] + 1])
    place_G = np.arange(len(groups_G)) - np.repeat(starts_R, ends_R - starts_R + 1)
    numbers_R = np.add.reduceat((groups_G & 0x1F) << (5 * place_G), starts_R)
    negative_R = (groups_G[ends_R] & 0x10) != 0
    numbers_R -= negative_R * (np.int64(1) << (5 * (ends_R - starts_R + 1)))
    numbers_R[1::2] = np.cumsum(numbers_R[1::2])
    numbers_R[2::2] = np.cumsum(numbers_R[2::2])
    return numbers_R


def _cut_at_columns(starts_R: np.ndarray, stops_R: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut runs where a column ends; (R',) starts and stops of the pieces."""
    pieces = [
        (max(start, column * height), min(stop, (column + 1) * height))
        for start, stop in zip(starts_R.tolist(), stops_R.tolist(), strict=True)
        for column in range(start // height, (stop - 1) // height + 1)
    ]
    starts, stops = zip(*pieces, strict=True)
    return np.array(starts), np.array(stops)
