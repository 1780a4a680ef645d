"""Detections or true cells of one image: boxes, scores, classes and masks as RLE."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from cellseg.data.planes import read_instances
from cellseg.data.rle import encode_instances, to_json_rle
from cellseg.data.sample import Sample
from cellseg.data.softmask import SoftMask


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The N cells of one image, in any order. N may be 0, and masks may be empty."""

    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    boxes_N4: np.ndarray
    """(N, 4) float32: x1, y1, x2, y2 in pixels of the image, with exclusive right and bottom edge."""
    scores_N: np.ndarray
    """(N,) float32 in [0, 1]."""
    labels_N: np.ndarray
    """(N,) int64 classes, from 1."""
    rles: tuple[dict, ...]
    """N masks of the image's size, as :mod:`cellseg.data.rle` makes them (counts are bytes)."""
    soft: tuple[SoftMask, ...] | None = None
    """The probabilities that the N masks were cut from, where they were asked for."""

    def __post_init__(self) -> None:
        lengths = len(self.boxes_N4), len(self.scores_N), len(self.labels_N), len(self.rles)
        assert self.soft is None or len(self.soft) == len(self.rles)
        assert len(set(lengths)) == 1, f"boxes, scores, labels and masks must be as many, but got {lengths}"
        assert self.boxes_N4.shape[1:] == (4,), f"boxes must be (N, 4), but got {self.boxes_N4.shape}"

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Self:
        """Return no detections, for an image of ``size`` (height, width)."""
        return cls(size, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ())

    @classmethod
    def from_sample(cls, sample: Sample) -> Self:
        """Convert an annotated image: every cell with score 1, in the order of its numbers."""
        cells = read_instances(sample.planes_PHW, sample.labels_N)
        rles = tuple(encode_instances(sample.planes_PHW, cells))
        return cls(sample.size, cells.boxes_N4, np.ones(len(rles), np.float32), cells.labels_N, rles)

    def select(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Select the detections at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        rles = tuple(self.rles[index] for index in chosen)
        soft = None if self.soft is None else tuple(self.soft[index] for index in chosen)
        return type(self)(self.size, self.boxes_N4[chosen], self.scores_N[chosen], self.labels_N[chosen], rles, soft)

    def above(self, min_score: float) -> Self:
        """Select the detections with a score of at least ``min_score``."""
        return self.select(np.flatnonzero(self.scores_N >= min_score))

    def to_coco_results(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict]:
        """Convert to COCO result records of plain JSON values: bbox is x, y, width, height, counts are text.

        ``category_ids``: the id of class 1, 2, ...; None: the class itself.
        """
        return [
            {
                "image_id": image_id,
                "category_id": label if category_ids is None else category_ids[label - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "segmentation": to_json_rle(rle),
            }
            for (x1, y1, x2, y2), score, label, rle in zip(
                self.boxes_N4.tolist(), self.scores_N.tolist(), self.labels_N.tolist(), self.rles, strict=True
            )
        ]
