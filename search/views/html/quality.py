"""Quality of predictions in detail: matched once at IoU 0.5, then counted by class, size, score and image.

Shape suffixes: D detections and G true cells of one image, B resampled sets of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from pycocotools import mask as coco_mask

from cellseg.data.rle import decode_window

if TYPE_CHECKING:
    from cellseg.data.detections import Detections

IOU = 0.5
MOST_DETECTIONS = 100
"""Per image and class, as in ``segm/AP50``."""
RESAMPLES = 300
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ImageMatch:
    """One image: which detection found which cell of its own class, at IoU 0.5."""

    scores_D: np.ndarray
    labels_D: np.ndarray
    areas_D: np.ndarray
    found_D: np.ndarray
    """Index of the cell that a detection found, or -1."""
    order_D: np.ndarray
    """Index of each of these detections among all of the image."""
    labels_G: np.ndarray
    areas_G: np.ndarray
    ious_DG: np.ndarray = field(repr=False)


def match_image(prediction: "Detections", truth: "Detections") -> ImageMatch:
    """Match the detections of an image with its cells, class by class, the best 100 of each."""
    chosen = [
        np.flatnonzero(prediction.labels_N == label)[
            np.argsort(-prediction.scores_N[prediction.labels_N == label], kind="stable")[:MOST_DETECTIONS]
        ]
        for label in np.unique(prediction.labels_N)
    ]
    order_D = np.concatenate([np.zeros(0, np.int64), *chosen]).astype(np.int64)
    order_D = order_D[np.argsort(-prediction.scores_N[order_D], kind="stable")]
    shown = prediction.select(order_D)
    ious_DG = np.zeros((len(shown), len(truth)))
    if ious_DG.size:
        ious_DG = coco_mask.iou(list(shown.rles), list(truth.rles), [0] * len(truth))
    found_D = np.full(len(shown), -1)
    for label in np.unique(shown.labels_N):
        mine, cells = np.flatnonzero(shown.labels_N == label), np.flatnonzero(truth.labels_N == label)
        if len(cells):
            found_D[mine] = np.where(
                (taken := _assign(ious_DG[np.ix_(mine, cells)])) >= 0, cells[np.maximum(taken, 0)], -1
            )
    return ImageMatch(
        shown.scores_N,
        shown.labels_N,
        _areas(shown.rles),
        found_D,
        order_D,
        truth.labels_N,
        _areas(truth.rles),
        ious_DG,
    )


def _assign(ious_DG: np.ndarray) -> np.ndarray:
    """COCO's greedy rule (:func:`cellseg.evaluate.match`) at IoU 0.5, with the cell that each detection takes."""
    found_D = np.full(len(ious_DG), -1)
    free_G = np.ones(ious_DG.shape[1], bool)
    for detection, iou_G in enumerate(ious_DG):
        near = np.flatnonzero(free_G & (iou_G >= IOU))[::-1]
        if near.size:
            found_D[detection] = near[iou_G[near].argmax()]
            free_G[found_D[detection]] = False
    return found_D


def _areas(rles: Sequence[dict]) -> np.ndarray:
    # pycocotools' own area overflows beyond 255 px with numpy 2.
    return np.array([float(decode_window(rle)[2].sum()) for rle in rles])


def average_precision(hits: np.ndarray, weights: np.ndarray, num_cells: float) -> float:
    """COCO's average precision over 101 recalls.

    Args:
        hits: whether each detection found a cell, by falling score.
        weights: how often each counts.
        num_cells: true cells, counted as often.

    Returns:
        0 without cells or detections.
    """
    if not num_cells or not len(hits):
        return 0.0
    true, false = np.cumsum(hits * weights), np.cumsum(~hits * weights)
    precision = np.maximum.accumulate((true / np.maximum(true + false, 1e-12))[::-1])[::-1]
    places = np.searchsorted(true / num_cells, RECALLS - 1e-12, side="left")
    return float(np.where(places < len(precision), precision[np.minimum(places, len(precision) - 1)], 0.0).mean())


class Quality:
    """The figures of one trial on its validation images."""

    def __init__(self, predictions: Sequence["Detections"], truths: Sequence["Detections"], class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self.images = [match_image(found, truth) for found, truth in zip(predictions, truths, strict=True)]
        self._image_D = np.repeat(np.arange(len(self.images)), [len(image.scores_D) for image in self.images])
        self.scores_D = np.concatenate([np.zeros(0), *(image.scores_D for image in self.images)])
        self.labels_D = np.concatenate([np.zeros(0, int), *(image.labels_D for image in self.images)])
        self.areas_D = np.concatenate([np.zeros(0), *(image.areas_D for image in self.images)])
        self.hits_D = np.concatenate([np.zeros(0, bool), *(image.found_D >= 0 for image in self.images)]).astype(bool)
        self.labels_G = np.concatenate([np.zeros(0, int), *(image.labels_G for image in self.images)])
        self.areas_G = np.concatenate([np.zeros(0), *(image.areas_G for image in self.images)])
        self._counts_IK = np.array(
            [[(image.labels_G == k + 1).sum() for k in range(len(class_names))] for image in self.images]
        ).reshape(len(self.images), len(class_names))

    @property
    def present(self) -> list[int]:
        """Classes, from 1, that have a true cell."""
        return [k + 1 for k in range(len(self.class_names)) if self._counts_IK[:, k].sum()]

    def ap50(self, weights_I: np.ndarray | None = None) -> float:
        """``segm/AP50``: the mean over the classes that have a cell.

        Args:
            weights_I: how often each image counts; None: once.
        """
        weights_I = np.ones(len(self.images)) if weights_I is None else weights_I
        values = [
            self.ap50_of(label, weights_I) for label in self.present if weights_I @ self._counts_IK[:, label - 1] > 0
        ]
        return float(np.mean(values)) if values else 0.0

    def ap50_of(self, label: int, weights_I: np.ndarray | None = None) -> float:
        """AP50 of a class."""
        weights_I = np.ones(len(self.images)) if weights_I is None else weights_I
        hits, images = self._sorted[label]
        return average_precision(hits, weights_I[images], float(weights_I @ self._counts_IK[:, label - 1]))

    @cached_property
    def _sorted(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        found = {}
        for label in range(1, len(self.class_names) + 1):
            mine = np.flatnonzero(self.labels_D == label)
            order = mine[np.argsort(-self.scores_D[mine], kind="stable")]
            found[label] = (self.hits_D[order], self._image_D[order])
        return found

    def bootstrap(self, seed: int = 0) -> np.ndarray:
        """(B,) AP50 of resampled sets of images, with the same seed the same images."""
        rng = np.random.default_rng(seed)
        count = len(self.images)
        draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) if count else np.zeros((0, 0))
        return np.array([self.ap50(weights_I) for weights_I in draws])

    def size_limits(self) -> tuple[float, float]:
        """Areas in px that part the true cells into thirds."""
        if not len(self.areas_G):
            return 0.0, 0.0
        low, high = np.quantile(self.areas_G, [1 / 3, 2 / 3])
        return float(low), float(high)

    def ap50_of_size(self, low: float, high: float) -> tuple[float, int]:
        """AP50 over all classes of cells with an area in [low, high), and their number. Detections that found another
        cell, or none and are of another size themselves, do not count."""
        cells = int(((self.areas_G >= low) & (self.areas_G < high)).sum())
        found_area_D = np.concatenate(
            [
                np.zeros(0),
                *(
                    np.where(image.found_D >= 0, image.areas_G[np.maximum(image.found_D, 0)], -1)
                    if len(image.areas_G)
                    else np.full(len(image.found_D), -1.0)
                    for image in self.images
                ),
            ]
        )
        area_D = np.where(found_area_D >= 0, found_area_D, self.areas_D)
        mine = np.flatnonzero((area_D >= low) & (area_D < high))
        order = mine[np.argsort(-self.scores_D[mine], kind="stable")]
        return average_precision(self.hits_D[order], np.ones(len(order)), float(cells)), cells

    def curve(self, label: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scores, precision, recall and F1 when all detections of at least that score count, by falling score."""
        mine = np.arange(len(self.scores_D)) if label is None else np.flatnonzero(self.labels_D == label)
        order = mine[np.argsort(-self.scores_D[mine], kind="stable")]
        cells = len(self.labels_G) if label is None else int((self.labels_G == label).sum())
        true = np.cumsum(self.hits_D[order])
        count = np.arange(1, len(order) + 1)
        precision, recall = true / count, true / max(1, cells)
        return self.scores_D[order], precision, recall, 2 * true / (count + cells)

    @cached_property
    def best_score(self) -> float:
        """The score that maximises F1 over all classes; 0.5 without detections."""
        scores, _, _, f1 = self.curve()
        return float(scores[f1.argmax()]) if len(scores) else 0.5

    def confusion(self) -> np.ndarray:
        """(K + 1, K + 1) counts at the best score, of true classes by found ones; the last row are false alarms, the
        last column missed cells. Here a detection may find a cell of another class."""
        size = len(self.class_names) + 1
        counts = np.zeros((size, size), int)
        for image in self.images:
            shown = np.flatnonzero(image.scores_D >= self.best_score)
            found = _assign(image.ious_DG[shown])
            for place, cell in zip(shown, found, strict=True):
                row = image.labels_G[cell] - 1 if cell >= 0 else size - 1
                counts[row, image.labels_D[place] - 1] += 1
            missed = np.setdiff1d(np.arange(len(image.labels_G)), found)
            np.add.at(counts, (image.labels_G[missed] - 1, size - 1), 1)
        return counts

    def per_image(self) -> list[tuple[int, int, int]]:
        """Hits, missed cells and false alarms of each image at the best score."""
        found = []
        for image in self.images:
            shown = image.scores_D >= self.best_score
            hits = int((image.found_D[shown] >= 0).sum())
            found.append((hits, len(image.labels_G) - hits, int(shown.sum()) - hits))
        return found


def f1(hits: int, missed: int, false: int) -> float:
    """F1 of counts; 1 for an image without cells in which nothing was found."""
    return 2 * hits / (2 * hits + missed + false) if hits + missed + false else 1.0
