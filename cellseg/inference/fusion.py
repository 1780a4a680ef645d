"""Fusion: the detections of several views or models become one set, in which every cell is once.

Each voter is one view, or one model. Within a class, detections are one cell if their masks overlap by more than
``AGREEMENT``; a voter has at most one detection in each cell, so neighbours that a voter tells apart stay apart. The
score of a cell is the weighted sum of its voters' scores divided by the weights of *all* voters, so a cell that few
found ranks low (Solovyev et al. 2021, arXiv:1910.13302, do this with boxes). Box and mask are averages over those that
found it, weighted by their scores: an average of probabilities, cut at the mask threshold only then.

Shape suffixes: D detections of all voters, K cells, 4 = x1, y1, x2, y2 in pixels.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cellseg.config import InferenceConfig
from cellseg.data.detections import Detections
from cellseg.data.softmask import SoftMask, mask_iou
from cellseg.inference.tiles import concatenate

AGREEMENT = 0.5
"""Masks of two voters are one cell if their IoU is larger than this."""
BOX_OVERLAP = 0.2
"""Masks are compared only where boxes have at least this IoU: comparing boxes is a thousand times faster."""


def fuse(
    votes: Sequence[Detections], inference: InferenceConfig, limit: int, weights: Sequence[float] | None = None
) -> Detections:
    """Fuse the detections of one image by several voters, best first, with soft masks. A single voter is returned as
    it is.

    With ``nms: hard`` no two boxes of a class overlap by more than ``nms_threshold`` afterwards either. ``soft`` has
    already lowered scores within each voter; they are not lowered again.

    Args:
        votes: the detections of each voter, at least one, with soft masks. A voter that found nothing counts.
        limit: keep at most this many.
        weights: the weight of each voter, positive. None: all the same.
    """
    if len(votes) == 1:
        return votes[0]
    all_found = concatenate(votes)
    assert all_found.soft is not None, "fusion needs soft masks"
    weight_V = np.ones(len(votes)) if weights is None else np.asarray(weights, float)
    voter_D = np.repeat(np.arange(len(votes)), [len(found) for found in votes])
    fused = [Detections(all_found.size, *_EMPTY, (), ())]
    for members in cluster(all_found, voter_D, inference.mask_threshold):
        fused.append(_average(all_found.select(members), weight_V[voter_D[members]], weight_V.sum(), inference))
    found = concatenate(fused)
    if inference.nms == "soft":
        return found.select(np.argsort(-found.scores_N, kind="stable")[:limit])
    return suppressed(found, inference, limit)


_EMPTY = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def cluster(found: Detections, voter_D: np.ndarray, mask_threshold: float) -> list[list[int]]:
    """Group detections by the cell that they show: indices into ``found``, the best-scored first in each group.

    In the order of their scores, each joins the group whose first mask it overlaps most, or begins a group.
    """
    assert found.soft is not None
    groups: list[list[int]] = []
    cut = [mask.cut(mask_threshold) for mask in found.soft]
    for label in np.unique(found.labels_N):
        of_class = np.flatnonzero(found.labels_N == label)
        of_class = of_class[np.argsort(-found.scores_N[of_class], kind="stable")]
        first_K4 = np.zeros((len(of_class), 4), np.float32)  # the box of each group's first detection
        members: list[list[int]] = []
        voters: list[set[int]] = []
        for index in of_class.tolist():
            box_4, voter = found.boxes_N4[index], int(voter_D[index])
            best, best_iou = -1, AGREEMENT
            near = np.flatnonzero(_box_ious(first_K4[: len(members)], box_4) >= BOX_OVERLAP)
            for group in near.tolist():
                if voter not in voters[group]:
                    first = members[group][0]
                    iou = mask_iou(found.soft[first], cut[first], found.soft[index], cut[index])
                    if iou > best_iou:
                        best, best_iou = group, iou
            if best < 0:
                first_K4[len(members)] = box_4
                members.append([index])
                voters.append({voter})
            else:
                members[best].append(index)
                voters[best].add(voter)
        groups += members
    return groups


def _box_ious(boxes_K4: np.ndarray, box_4: np.ndarray) -> np.ndarray:
    sides_K2 = np.minimum(boxes_K4[:, 2:], box_4[2:]) - np.maximum(boxes_K4[:, :2], box_4[:2])
    common_K = sides_K2.clip(min=0).prod(axis=1)
    areas_K = (boxes_K4[:, 2:] - boxes_K4[:, :2]).prod(axis=1)
    return common_K / np.maximum(areas_K + (box_4[2:] - box_4[:2]).prod() - common_K, 1e-9)


def _average(cell: Detections, weights: np.ndarray, total_weight: float, inference: InferenceConfig) -> Detections:
    """Average the detections of one cell."""
    assert cell.soft is not None
    votes = weights * cell.scores_N
    shares = votes if votes.sum() > 0 else weights  # scores may all be 0
    mask = SoftMask.mean(cell.soft, shares)
    box_14 = np.average(cell.boxes_N4, axis=0, weights=shares)[None].astype(np.float32)
    score_1 = np.array([votes.sum() / total_weight], np.float32)
    return Detections(
        cell.size, box_14, score_1, cell.labels_N[:1], (mask.encode(inference.mask_threshold, cell.size),), (mask,)
    )


def suppressed(found: Detections, inference: InferenceConfig, limit: int) -> Detections:
    """Keep the detections that ``inference.nms`` leaves, with the scores they have then, best first."""
    import torch

    from cellseg.model.nms import suppress

    boxes_N4, scores_N, labels_N = map(torch.from_numpy, (found.boxes_N4, found.scores_N, found.labels_N))
    kept_K, scores_K = suppress(boxes_N4, scores_N, labels_N, inference, limit)
    return replace(found.select(kept_K.numpy()), scores_N=scores_K.numpy())
