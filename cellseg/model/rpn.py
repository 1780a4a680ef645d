"""The region proposal network: targets of the anchors, and proposals from their predictions.

Shape suffixes: B images, A anchors of an image, K candidates, N cells, P, Q drawn anchors, 4 = x1, y1, x2, y2 in px.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import clip_boxes_to_image

from cellseg.model import waiting
from cellseg.model.anchors import AnchorGrid, CellAnchors
from cellseg.model.boxes import Float32BoxCoder, best_of_each_image, suppress_in_groups
from cellseg.model.ignore import without_ignored
from cellseg.model.matching import match_anchors
from cellseg.model.sampling import Sampler

Assign = Callable[[Tensor, AnchorGrid], Tensor]
"""Maps the boxes of at least one cell (N, 4) and the anchors to (A,) int64: the cell matched to each anchor, -1 for
background, -2 for neither."""


class CellRPN(RegionProposalNetwork):
    """torchvision's RPN, with float32 boxes under every precision, no N x A tensor, and a single GPU synchronisation.

    In training on a GPU, every image has the maximum number of proposals; surplus ones have no area.
    """

    anchor_generator: CellAnchors
    fg_bg_sampler: Sampler
    box_coder: Float32BoxCoder

    def __init__(self, *parts: Any, best_anchor: bool = True, assign: Assign | None = None, **more: Any):
        """``parts`` and ``more`` are torchvision's arguments.

        Args:
            best_anchor: the anchors with the highest IoU with a cell are matched to it, however low that IoU is.
            assign: replaces the assignment by IoU thresholds.
        """
        super().__init__(*parts, **more)
        self.proposal_matcher.allow_low_quality_matches = best_anchor
        self.fg_bg_sampler = Sampler.like(self.fg_bg_sampler)
        self.box_coder = Float32BoxCoder(self.box_coder.weights)
        self.assign = assign or self._by_thresholds

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals (K, 4) float32 of each image, the best first, and in training the unweighted losses."""
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        grid = self.anchor_generator.grid(images, maps)
        scores_BA = torch.cat([_by_place(level, 1)[..., 0] for level in objectness], dim=1).float()
        deltas_BA4 = torch.cat([_by_place(level, 4) for level in deltas], dim=1).float()
        proposals = self._propose(scores_BA.detach(), deltas_BA4.detach(), grid, images.image_sizes)
        if not self.training:
            return proposals, {}
        assert targets is not None
        return proposals, self._losses(scores_BA, deltas_BA4, grid, targets)

    @torch.no_grad()
    def _propose(
        self, scores_BA: Tensor, deltas_BA4: Tensor, grid: AnchorGrid, image_sizes: list[tuple[int, int]]
    ) -> list[Tensor]:
        counts = [math.prod(level.shape) for level in grid.levels]
        top, groups = [], []
        for index, (level, scores) in enumerate(zip(grid.levels, scores_BA.split(counts, dim=1), strict=True)):
            found = scores.topk(min(self.pre_nms_top_n(), scores.shape[1]), dim=1).indices
            top.append(found + level.first)
            groups.append(torch.full((found.shape[1],), index, device=found.device))
        top_BK, groups_K = torch.cat(top, dim=1), torch.cat(groups)
        scores_BK = scores_BA.gather(1, top_BK)
        deltas_BK4 = deltas_BA4.gather(1, top_BK[:, :, None].expand(-1, -1, 4))
        anchors_BK4 = grid.boxes_A4[top_BK]
        decoded = self.box_coder.decode_single(deltas_BK4.flatten(0, 1), anchors_BK4.flatten(0, 1))
        boxes = zip(decoded.unflatten(0, top_BK.shape), image_sizes, strict=True)
        boxes_BK4 = torch.stack([clip_boxes_to_image(boxes_K4, size) for boxes_K4, size in boxes])
        # NaN compares false, so such proposals are dropped.
        side_BK = (boxes_BK4[..., 2:] - boxes_BK4[..., :2]).amin(dim=2)
        is_there_BK = (side_BK >= self.min_size) & (scores_BK.sigmoid() >= self.score_thresh)
        boxes_BK4 = torch.where(is_there_BK[..., None], boxes_BK4, 0)
        kept = suppress_in_groups(boxes_BK4, scores_BK, groups_K, is_there_BK, self.nms_thresh)
        limit = min(self.post_nms_top_n(), top_BK.shape[1])
        best_BK4, _ = best_of_each_image(kept, boxes_BK4, scores_BK, is_there_BK, limit)
        if self.training and not waiting.may_wait(kept.device):
            return list(best_BK4)
        return [boxes_K4[boxes_K4[:, 2] > boxes_K4[:, 0]] for boxes_K4 in best_BK4]

    def _losses(
        self, scores_BA: Tensor, deltas_BA4: Tensor, grid: AnchorGrid, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """torchvision's: means over all anchors drawn from the batch."""
        of_scores, of_boxes, drawn = [], [], []
        boxes = [target["boxes"] for target in targets]
        found = [self.labels(target["boxes"], grid, target.get("ignored")) for target in targets]
        labels, matched = zip(*found, strict=True)
        for scores_A, deltas_A4, boxes_N4, labels_A, matched_A in zip(
            scores_BA, deltas_BA4, boxes, labels, matched, strict=True
        ):
            sample = self.fg_bg_sampler.draw(labels_A)
            index = torch.cat([sample.positive_P, sample.negative_Q])
            is_drawn = torch.cat([sample.is_positive_P, sample.is_negative_Q])
            logits, truth = scores_A[index], labels_A[index]
            losses = F.binary_cross_entropy_with_logits(logits, truth.clamp(min=0), reduction="none")
            of_scores.append(torch.where(is_drawn, losses, 0).sum())
            drawn.append(is_drawn.sum())
            predicted_P4 = deltas_A4[sample.positive_P]
            if len(boxes_N4):
                cells_P = matched_A[sample.positive_P].clamp(min=0)
                truth_P4 = self.box_coder.encode_single(boxes_N4[cells_P], grid.boxes_A4[sample.positive_P])
                losses = F.smooth_l1_loss(predicted_P4, truth_P4, beta=1 / 9, reduction="none")
                of_boxes.append(torch.where(sample.is_positive_P[:, None], losses, 0).sum())
            else:
                of_boxes.append(predicted_P4.sum() * 0)
        count = torch.stack(drawn).sum().clamp(min=1)
        return {
            "loss_objectness": torch.stack(of_scores).sum() / count,
            "loss_rpn_box_reg": torch.stack(of_boxes).sum() / count,
        }

    @torch.no_grad()
    def labels(self, boxes_N4: Tensor, grid: AnchorGrid, ignored_J4: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Assign an image's anchors their objectness labels and cells.

        Args:
            ignored_J4: boxes under which no anchor is background, see :mod:`cellseg.model.ignore`.

        Returns:
            (A,) float32, 1 cell, 0 background, -1 ignored; and the cell matched to each anchor, (A,) int64,
            negative where there is none.
        """
        if len(boxes_N4):
            matched_A = self.assign(boxes_N4.float(), grid)
            labels_A = (matched_A + 1).clamp(-1, 1).float()
        else:
            labels_A = grid.boxes_A4.new_zeros(len(grid.boxes_A4))
            matched_A = torch.full_like(labels_A, -1, dtype=torch.int64)
        return without_ignored(labels_A, grid.boxes_A4, ignored_J4), matched_A

    def _by_thresholds(self, boxes_N4: Tensor, grid: AnchorGrid) -> Tensor:
        return match_anchors(boxes_N4, grid, self.proposal_matcher)


def _by_place(maps_BXHW: Tensor, values: int) -> Tensor:
    """(B, anchors, values) of a level's (B, shapes * values, H, W), in the order of the anchors."""
    maps_BSVHW = maps_BXHW.unflatten(1, (-1, values))
    return maps_BSVHW.permute(0, 3, 4, 1, 2).flatten(1, 3)
