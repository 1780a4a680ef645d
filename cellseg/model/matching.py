"""Which cell an anchor stands for, found without a table of all cells and all anchors.

Shape suffixes: N cells, A anchors, 4 = x1, y1, x2, y2 in pixels.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from cellseg.model.ignore import without_ignored

PAIRS_AT_ONCE = 1 << 20
"""Cells times anchors that are compared at a time, which takes about 40 bytes a pair. An image with 1,000 cells and
250,000 anchors has 250 times as many."""


class CellRPN(RegionProposalNetwork):
    """torchvision's RPN, whose training needs no N x A tensor."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image what its anchors should say, 1 cell, 0 background, -1 nothing (A,), and the box (A, 4) of the
        cell that each is compared with, of any where it is none; both float32."""
        found = [self._assign(anchors_A4, target["boxes"]) for anchors_A4, target in zip(anchors, targets, strict=True)]
        labels, boxes = (list(values) for values in zip(*found, strict=True))
        return without_ignored(labels, anchors, targets), boxes

    def _assign(self, anchors_A4: Tensor, boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
        if not len(boxes_N4):
            return anchors_A4.new_zeros(len(anchors_A4)), torch.zeros_like(anchors_A4)
        matched_A = match_anchors(boxes_N4, anchors_A4, self.proposal_matcher)
        labels_A = (matched_A >= 0).to(torch.float32)
        labels_A[matched_A == Matcher.BETWEEN_THRESHOLDS] = -1
        return labels_A, boxes_N4[matched_A.clamp(min=0)]


def match_anchors(boxes_N4: Tensor, anchors_A4: Tensor, matcher: Matcher) -> Tensor:
    """``matcher(box_iou(boxes_N4, anchors_A4))``, a chunk of the anchors at a time.

    An anchor belongs to the cell it overlaps most if that IoU reaches the matcher's high threshold, or, where the
    matcher allows it, if no anchor overlaps some cell more (so that every cell has an anchor).

    Args:
        boxes_N4: at least one, float32.
        anchors_A4: at least one, float32.

    Returns:
        (A,) int64: a cell in 0..N-1, or ``BELOW_LOW_THRESHOLD`` or ``BETWEEN_THRESHOLDS`` of the matcher.
    """
    chunks = anchors_A4.split(max(PAIRS_AT_ONCE // len(boxes_N4), 1))
    overlaps, nearest, tops = [], [], []
    for chunk_a4 in chunks:
        iou_Na = box_iou(boxes_N4, chunk_a4)
        overlap_a, nearest_a = iou_Na.max(dim=0)
        overlaps.append(overlap_a)
        nearest.append(nearest_a)
        tops.append(iou_Na.amax(dim=1))
    overlap_A, nearest_A, tops_CN = torch.cat(overlaps), torch.cat(nearest), torch.stack(tops)
    matched_A = nearest_A.clone()
    matched_A[overlap_A < matcher.high_threshold] = matcher.BETWEEN_THRESHOLDS
    matched_A[overlap_A < matcher.low_threshold] = matcher.BELOW_LOW_THRESHOLD
    if matcher.allow_low_quality_matches:
        closest_A = _closest(boxes_N4, chunks, tops_CN)
        matched_A[closest_A] = nearest_A[closest_A]
    return matched_A


def _closest(boxes_N4: Tensor, chunks: tuple[Tensor, ...], tops_CN: Tensor) -> Tensor:
    """(A,) bool: the anchors that overlap some cell as much as any anchor does. ``tops_CN``: the most in each chunk."""
    top_N = tops_CN.amax(dim=0)
    closest = []
    for chunk_a4, of_chunk_N in zip(chunks, tops_CN, strict=True):
        here_n = of_chunk_N == top_N  # few: only their overlaps are computed again
        iou_na = box_iou(boxes_N4[here_n], chunk_a4)
        closest.append((iou_na == top_N[here_n, None]).any(dim=0))
    return torch.cat(closest)
