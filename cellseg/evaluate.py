"""COCO average precision of masks, at 100 detections per image and class and at all of them.

pycocotools' own summary stops at 100 detections, which leaderboards run but dense images exceed: 625 perfect detections
score 0.17. Its summary with another limit breaks, so its precision table is read here. IoU and accumulation are
pycocotools'; only the matching of detections to truth is our own, because pycocotools compares every detection with
every cell in Python (0.8 s an image at 600 cells). The figures are the same to rounding.

Shape suffixes: D detections and G true cells of one image and class, T IoU thresholds, R recalls, K classes.
"""

import contextlib
import io
import sys
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from cellseg.data.detections import Detections

DETECTION_LIMITS = {"": 100, "@all": sys.maxsize}
"""Suffix of a metric's name: most detections per image and class that count, those with the highest scores."""

IOU_THRESHOLDS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""Name of a metric: which of COCO's ten IoU thresholds 0.50, 0.55, ..., 0.95 it averages over."""


ImageMatches = tuple[dict | None, ...]
"""The matches of one image, for each class; None where the image has neither truth nor detection of it."""


def evaluate(
    predictions: Sequence[Detections], truths: Sequence[Detections], class_names: Sequence[str]
) -> dict[str, float]:
    """Compute COCO mask AP of ``predictions`` against ``truths``, image by image in the same order.

    Args:
        predictions: what was found; masks, labels and scores count, boxes do not.
        truths: what is there; scores do not count.
        class_names: name of class 1, 2, ...; every label is one of them.

    Returns:
        Finite values in [0, 1]: ``segm/AP``, ``segm/AP50``, ``segm/AP75`` (100 detections per image and class), the
        same with ``@all`` (no limit), and per class ``segm/AP/<class>``, ``segm/AP50/<class>`` (100 detections).
        A class without a true cell has no AP: it is left out of the means, and its own figures are 0, as are the means
        where no image has a cell. Without detections everything is 0.
    """
    return summarize(
        [match_image(*pair, len(class_names)) for pair in zip(predictions, truths, strict=True)], class_names
    )


def match_image(prediction: Detections, truth: Detections, num_classes: int) -> ImageMatches:
    """Compare one image with its truth: what :func:`summarize` needs, for each class."""
    thresholds_T = COCOeval(iouType="segm").params.iouThrs
    return tuple(_match_class(prediction, truth, label, thresholds_T) for label in range(1, num_classes + 1))


def summarize(images: Sequence[ImageMatches], class_names: Sequence[str]) -> dict[str, float]:
    """Compute the figures of :func:`evaluate` for any choice of images that were compared before."""
    matches = [of_image[k] for k in range(len(class_names)) for of_image in images]
    precision = _accumulate(matches, len(images), len(class_names))
    metrics = {
        f"segm/{name}{suffix}": _mean(precision[suffix][thresholds])
        for suffix in DETECTION_LIMITS
        for name, thresholds in IOU_THRESHOLDS.items()
    }
    for k, class_name in enumerate(class_names):
        for name in ("AP", "AP50"):
            metrics[f"segm/{name}/{class_name}"] = _mean(precision[""][IOU_THRESHOLDS[name], :, k])
    return metrics


def match(ious_DG: np.ndarray, thresholds_T: np.ndarray) -> np.ndarray:
    """Match detections to true cells by COCO's greedy rule; each cell is taken once.

    Detections choose in turn; each takes the free cell that it overlaps most if that IoU reaches the threshold, the
    last of equals.

    Args:
        ious_DG: (D, G) IoUs, detections by falling score.
        thresholds_T: rising IoU thresholds.

    Returns:
        (T, D) bool.
    """
    num_detections, num_truths = ious_DG.shape
    matched_TD = np.zeros((len(thresholds_T), num_detections), dtype=bool)
    free_TG = np.ones((len(thresholds_T), num_truths), dtype=bool)
    for detection, iou_G in enumerate(ious_DG):
        near = np.flatnonzero(iou_G >= thresholds_T[0])[::-1]  # reversed: argmax takes the first of equals
        if near.size:
            eligible_TN = free_TG[:, near] & (iou_G[near] >= thresholds_T[:, None])
            best_T = near[np.where(eligible_TN, iou_G[near], -1.0).argmax(axis=1)]
            found_T = eligible_TN.any(axis=1)
            matched_TD[found_T, detection] = True
            free_TG[found_T, best_T[found_T]] = False
    return matched_TD


def _match_class(prediction: Detections, truth: Detections, label: int, thresholds_T: np.ndarray) -> dict | None:
    """Build the record of pycocotools' ``evaluateImg`` for one image and class, as far as ``accumulate`` reads it."""
    assert prediction.size == truth.size, f"sizes must agree, but got {prediction.size} and {truth.size}"
    found = prediction.select(np.flatnonzero(prediction.labels_N == label))
    found = found.select(np.argsort(-found.scores_N, kind="stable"))
    there = truth.select(np.flatnonzero(truth.labels_N == label))
    if not len(found) and not len(there):
        return None
    ious_DG = np.zeros((len(found), len(there)))
    if ious_DG.size:
        ious_DG = coco_mask.iou(list(found.rles), list(there.rles), [0] * len(there))
    matched_TD = match(ious_DG, thresholds_T)
    return {
        "dtScores": found.scores_N,
        "dtMatches": matched_TD,
        "dtIgnore": np.zeros_like(matched_TD),
        "gtIgnore": np.zeros(len(there), dtype=bool),
    }


def _accumulate(matches: list[dict | None], num_images: int, num_classes: int) -> dict[str, np.ndarray]:
    """Compute COCO's (T, R, K) precision for each suffix in ``DETECTION_LIMITS``; -1 for classes without true cells.

    ``matches`` has one entry for each image of class 1, then of class 2, and so on.
    """
    evaluator = COCOeval(iouType="segm")
    evaluator.params.imgIds = list(range(num_images))
    evaluator.params.catIds = list(range(1, num_classes + 1))
    evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, float("inf")]], ["all"]
    evaluator.params.maxDets = list(DETECTION_LIMITS.values())
    evaluator.evalImgs = matches
    evaluator._paramsEval = evaluator.params
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluator.accumulate()
    return {suffix: evaluator.eval["precision"][:, :, :, 0, m] for m, suffix in enumerate(DETECTION_LIMITS)}


def _mean(precision: np.ndarray) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else 0.0
