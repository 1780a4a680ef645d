"""Scores of whole predictions: panoptic quality, F1, aggregated Jaccard index and the error of counts.

AP ranks detections by score; these take every detection that is given, so cut at a score threshold first. Detections of
the same class are compared by mask IoU.

- PQ (Kirillov et al. 2019, arXiv:1801.00868): sum of the IoUs of matches / (TP + FP / 2 + FN / 2), where a match has an
  IoU above 0.5. Without overlaps a match is unique there; with overlaps the largest IoUs are matched first.
- F1 at 0.5: TP / (TP + FP / 2 + FN / 2) of the same matches.
- AJI (Kumar et al. 2017, IEEE TMI 36(7)): each cell takes the detection of largest IoU, several may take the same;
  sum of intersections / (sum of unions + pixels of the detections that none took).
- Count error: mean over images of |detections - cells|.

Shape suffixes: D detections and G true cells of one image and class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from cellseg.data.detections import Detections

MATCH_IOU = 0.5
"""Matches have a larger IoU than this."""


@dataclass(frozen=True)
class InstanceScores:
    """Means over the classes that have a cell or a detection; 0 where no class has. In [0, 1] but for the last."""

    pq: float
    f1: float
    aji: float
    count_error: float
    """Cells per image, of all classes together."""


def instance_scores(
    predictions: Sequence[Detections], truths: Sequence[Detections], num_classes: int
) -> InstanceScores:
    """Score ``predictions`` against ``truths``, image by image in the same order. Sums run over all images of a class,
    so an image counts by its cells."""
    totals = np.zeros((num_classes, 6))  # matched IoU, matches, detections, cells, intersection, union
    for prediction, truth in zip(predictions, truths, strict=True):
        for label in range(1, num_classes + 1):
            totals[label - 1] += _of_image(prediction, truth, label)
    totals = totals[(totals[:, 2] > 0) | (totals[:, 3] > 0)]
    matched_iou, matches, found, cells, intersection, union = totals.T
    half = (found + cells) / 2  # TP + FP / 2 + FN / 2
    differences = [abs(len(p) - len(t)) for p, t in zip(predictions, truths, strict=True)]
    return InstanceScores(
        pq=_mean(matched_iou / half),
        f1=_mean(matches / half),
        aji=_mean(intersection / union.clip(min=1)),
        count_error=_mean(np.array(differences, float)),
    )


def _of_image(prediction: Detections, truth: Detections, label: int) -> tuple[float, float, float, float, float, float]:
    found = [prediction.rles[index] for index in np.flatnonzero(prediction.labels_N == label)]
    cells = [truth.rles[index] for index in np.flatnonzero(truth.labels_N == label)]
    area_D, area_G = (np.array([coco_mask.area(rle) for rle in rles], float) for rles in (found, cells))
    if not (found and cells):
        return 0.0, 0.0, len(found), len(cells), 0.0, area_D.sum() + area_G.sum()
    iou_DG = coco_mask.iou(found, cells, [0] * len(cells))
    ious = matched_ious(iou_DG)

    best_G = iou_DG.argmax(axis=0)
    overlapping_G = iou_DG.max(axis=0) > 0
    iou_G, taken_G = iou_DG.max(axis=0)[overlapping_G], best_G[overlapping_G]
    both_G = area_D[taken_G] + area_G[overlapping_G]
    union_G = both_G / (1 + iou_G)  # i / u = iou and i + u = both
    alone = area_D.sum() - area_D[np.unique(taken_G)].sum()
    missed = area_G[~overlapping_G].sum()
    return (
        float(ious.sum()),
        float(len(ious)),
        float(len(found)),
        float(len(cells)),
        float((both_G - union_G).sum()),
        float(union_G.sum() + alone + missed),
    )


def matched_ious(iou_DG: np.ndarray) -> np.ndarray:
    """Return the IoUs of one-to-one matches above ``MATCH_IOU``, the largest first."""
    iou_DG = iou_DG.copy()
    ious = []
    while iou_DG.size and (highest := iou_DG.max()) > MATCH_IOU:
        ious.append(highest)
        detection, cell = np.unravel_index(iou_DG.argmax(), iou_DG.shape)
        iou_DG[detection, :] = 0
        iou_DG[:, cell] = 0
    return np.array(ious)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
