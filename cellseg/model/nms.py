"""Non-maximum suppression: selects among overlapping detections and adjusts their scores.

Shape suffixes: N detections, K kept ones, C those of one class, 4 = x1, y1, x2, y2 in pixels.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from cellseg.config import InferenceConfig

PENALTIES_AT_ONCE = 256
"""Rows of the matrix of overlaps that Soft-NMS computes at once."""


def suppress(
    boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor, inference: InferenceConfig, limit: int
) -> tuple[Tensor, Tensor]:
    """Select the detections that ``inference.nms`` leaves, best first. Classes do not affect each other.

    ``hard`` drops a box that overlaps a better one by more than ``nms_threshold``. ``soft`` lowers its score instead,
    by exp(-IoU^2 / ``soft_nms_sigma``) for each better one (Bodla et al. 2017), and drops what falls below
    ``score_threshold``.

    ``soft`` works on the CPU, with the overlaps of ``PENALTIES_AT_ONCE`` boxes with the C of their class at a time.

    Args:
        boxes_N4: (N, 4) float; N may be 0.
        scores_N: (N,) float in [0, 1].
        labels_N: (N,) int64.
        limit: keep at most this many.

    Returns:
        Indices (K,) int64 into the arguments and the scores (K,) they have now, falling, on the arguments' device.
    """
    if inference.nms == "hard":
        kept_K = batched_nms(boxes_N4, scores_N, labels_N, inference.nms_threshold)[:limit]
        return kept_K, scores_N[kept_K]
    boxes_on_cpu_N4, scores_on_cpu_N, labels_on_cpu_N = (t.detach().cpu() for t in (boxes_N4, scores_N, labels_N))
    indices, scores = [torch.zeros(0, dtype=torch.int64)], [scores_on_cpu_N[:0]]
    for label in labels_on_cpu_N.unique():
        of_class_C = torch.nonzero(labels_on_cpu_N == label)[:, 0]
        boxes_C4, scores_C = boxes_on_cpu_N4[of_class_C], scores_on_cpu_N[of_class_C]
        picked, decayed = _soft(boxes_C4, scores_C, inference.soft_nms_sigma, inference.score_threshold, limit)
        indices.append(of_class_C[picked])
        scores.append(decayed)
    all_scores, order = torch.cat(scores).sort(descending=True, stable=True)
    kept_K = torch.cat(indices)[order][:limit]
    return kept_K.to(boxes_N4.device), all_scores[:limit].to(scores_N.device)


def _soft(
    boxes_C4: Tensor, scores_C: Tensor, sigma: float, score_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Compute indices and scores of Gaussian Soft-NMS within a class, in the order of picking.

    Each pick depends on all before it, so the loop stays; on the CPU a turn costs microseconds, on a GPU it would wait
    for the device. Logarithms turn the product of decays into a difference, and a score of 0 into -inf, which no decay
    brings back.
    """
    with np.errstate(divide="ignore"):
        logs_C = np.log(scores_C.double().numpy())
        lowest = np.log(score_threshold)
    picked: list[int] = []
    logs: list[float] = []
    penalties: dict[int, np.ndarray] = {}
    while len(picked) < min(limit, len(logs_C)):
        best = int(logs_C.argmax())
        if logs_C[best] == -np.inf or logs_C[best] < lowest:
            break
        if best not in penalties:
            # Those likely to be picked next, all at once: a C x C matrix of 9,000 boxes would fill 650 MB.
            likely = np.argsort(-logs_C, kind="stable")[:PENALTIES_AT_ONCE]
            rows = (box_iou(boxes_C4[likely], boxes_C4).double().square() / sigma).numpy()
            penalties = dict(zip(likely.tolist(), rows, strict=True))
        picked.append(best)
        logs.append(logs_C[best])
        logs_C -= penalties[best]
        logs_C[best] = -np.inf
    return torch.tensor(picked, dtype=torch.int64), torch.tensor(np.exp(logs), dtype=scores_C.dtype)
