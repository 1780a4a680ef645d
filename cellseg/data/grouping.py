"""Batches of images of similar size, and the cost of padding them to a common size.

A detector pads the images of a batch to the largest height and the largest width among them. If sizes differ, most
of the computation may be padding: 70 % for images of nuclei at native size, 8 in a batch. So batches are made of
images of similar size, but only as far as needed: a plain shuffle that wastes little stays.

Shape suffixes: N images, B images of a batch, 2 = height, width in pixels.
"""

import math
from collections.abc import Sequence

import numpy as np

DIVISIBLE = 32
"""Pixels: sides of a padded batch are multiples of this, the coarsest stride of the pyramid."""

WASTE_AIM = 1.05
"""Acceptable ratio of padded pixels to those of the images padded one by one: below it, a plain shuffle stays."""

BLOCK_GROWTH = 4
"""Images are sorted within blocks of 4, 16, 64, ... batches, until the aim is met."""

PARTIAL_TRIES = 4
"""Random images tried as the one that gives the partial batch its size. A bad choice, such as all but one of the
largest images, costs more than the partial batch is worth."""


def padded(shapes_N2: np.ndarray) -> np.ndarray:
    """Round sides up to multiples of ``DIVISIBLE``."""
    return -(-np.asarray(shapes_N2) // DIVISIBLE) * DIVISIBLE


def batch_pixels(shapes_B2: np.ndarray) -> int:
    """Count the pixels of a batch of images of these shapes, padding included. 0 without images."""
    if not len(shapes_B2):
        return 0
    return len(shapes_B2) * math.prod(padded(shapes_B2).max(axis=0).tolist())


def waste(batches: Sequence[Sequence[int]], shapes_N2: np.ndarray) -> float:
    """Return the ratio of padded pixels in the batches to those of the images padded one by one; at least 1."""
    alone = sum(padded(shapes_N2[[*batch]]).prod(axis=1).sum() for batch in batches)
    return sum(batch_pixels(shapes_N2[[*batch]]) for batch in batches) / alone


def group_batches(shapes_N2: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Group every image once into batches of ``batch_size``, all full except perhaps one, in random order.

    The images are shuffled and split into batches. If that wastes more than ``WASTE_AIM`` allows, the shuffled order is
    cut into blocks, each sorted into batches by :func:`_sort_block`. The blocks are as small as the aim allows, at most
    the whole epoch. So batches are as random as sizes allow, and no image or size has a fixed place in the order.

    Args:
        shapes_N2: (N, 2) height and width of the images as the network sees them, N > 0.

    Returns:
        Indices of images.
    """
    order = rng.permutation(len(shapes_N2)).tolist()
    chosen = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    least = waste(chosen, shapes_N2)
    rest = len(order) % batch_size
    block_size = batch_size
    while least > WASTE_AIM and block_size < len(order):
        block_size *= BLOCK_GROWTH
        for first in range(PARTIAL_TRIES if rest and block_size >= len(order) else 1):
            full, last = _take_last(order, first, rest, shapes_N2)
            blocks = [full[start : start + block_size] for start in range(0, len(full), block_size)]
            batches = [batch for block in blocks for batch in _sort_block(block, shapes_N2, batch_size)]
            batches = [batches[position] for position in rng.permutation(len(batches))] + ([last] if last else [])
            wasted = waste(batches, shapes_N2)
            if wasted < least:
                chosen, least = batches, wasted
            if least <= WASTE_AIM:
                break
    return chosen


def _take_last(order: list[int], first: int, count: int, shapes_N2: np.ndarray) -> tuple[list[int], list[int]]:
    """Split off the ``count`` images of the partial batch: those closest in size to the image at ``first`` in the
    order. Returns the other images and the partial batch."""
    if not count:
        return order, []
    logs = np.log(shapes_N2[order])
    nearest = np.argsort(np.abs(logs - logs[first % len(order)]).sum(axis=1), kind="stable")
    last = {order[position] for position in nearest[:count]}
    return [image for image in order if image not in last], [image for image in order if image in last]


def _sort_block(block: list[int], shapes_N2: np.ndarray, batch_size: int) -> list[list[int]]:
    """Cut a block, whose number of images is a multiple of ``batch_size``, in two until only batches are left."""
    batches, parts = [], [block]
    while parts:
        part = parts.pop()
        if len(part) <= batch_size:
            batches.append(part)
        else:
            parts += _cut(part, shapes_N2, batch_size)
    return batches


def _cut(part: list[int], shapes_N2: np.ndarray, batch_size: int) -> tuple[list[int], list[int]]:
    """Cut ``part`` into two parts of whole batches.

    The images are sorted by height or by width, and cut where the two parts, each padded to its own largest
    sides, have the fewest pixels in total. Ties keep their order.
    """
    shapes_B2 = padded(shapes_N2[part])
    cuts = np.arange(batch_size, len(part), batch_size)
    best: tuple[float, int, np.ndarray] | None = None
    for axis in (0, 1):
        order = np.argsort(shapes_B2[:, axis], kind="stable")
        sides_B2 = shapes_B2[order]
        before_B = np.maximum.accumulate(sides_B2, axis=0).prod(axis=1)  # area of the first i + 1, padded together
        after_B = np.maximum.accumulate(sides_B2[::-1], axis=0).prod(axis=1)[::-1]  # of those from i on
        pixels = before_B[cuts - 1] * cuts + after_B[cuts] * (len(part) - cuts)
        # Of equally good cuts, take the middle one: it needs the fewest further cuts.
        least = np.flatnonzero(pixels == pixels.min())
        if best is None or pixels.min() < best[0]:
            best = float(pixels.min()), int(cuts[least[len(least) // 2]]), order
    assert best is not None
    _, cut, order = best
    images = [part[position] for position in order]
    return images[:cut], images[cut:]
