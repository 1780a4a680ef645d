"""RoI heads that never see an N x H x W mask tensor.

Training reads mask targets out of the instance planes; prediction returns the probabilities within each box, which
:mod:`cellseg.inference.paste` turns into RLE inside it. Everything else is torchvision's.

Whatever the precision of training, features are pooled in float32, and boxes, scores, losses and masks are float32.

Shape suffixes: P proposals, R positive regions of interest (RoIs), N detections, C classes with background first,
M side of a mask, 4 = x1, y1, x2, y2 in pixels of the network's input.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import box_iou, clip_boxes_to_image, remove_small_boxes

from cellseg.config import InferenceConfig
from cellseg.data.targets import roi_mask_targets, sampling_points
from cellseg.model.boxes import Float32BoxCoder
from cellseg.model.ignore import without_ignored
from cellseg.model.mask_losses import cross_entropy_loss, dice_loss, own_class
from cellseg.model.nms import suppress
from cellseg.model.pointrend import PointHead, point_loss, refine_masks
from cellseg.model.pooling import PyramidRoIAlign
from cellseg.model.sampling import Sampler

MASKS_AT_ONCE = 256
"""Detections that share a pass through the mask head in prediction; its layers take 2 MB for each."""


@dataclass(frozen=True)
class Regions:
    """The proposals of one image in a training step, positives (on cells) before negatives."""

    boxes_P4: Tensor
    matched_P: Tensor
    """int64: the cell that each overlaps most; arbitrary for negatives."""
    labels_P: Tensor
    """int64: the class of that cell, 0 for negatives."""
    levels_P: np.ndarray
    """int64: the level that the heads pool from."""
    points_R2: np.ndarray
    """int64, of the positives: :func:`cellseg.data.targets.sampling_points` of their masks."""

    @property
    def on_cells(self) -> int:
        """R, the number of positives."""
        return len(self.points_R2)


class CellRoIHeads(RoIHeads):
    """Box and mask heads. Targets are those of :func:`cellseg.data.targets.make_target`."""

    box_roi_pool: PyramidRoIAlign
    mask_roi_pool: PyramidRoIAlign
    fg_bg_sampler: Sampler
    box_coder: Float32BoxCoder

    def __init__(
        self,
        inference: InferenceConfig,
        point_head: PointHead | None,
        mask_alignment: str = "torchvision",
        **parts: Any,
    ):
        """``parts`` are torchvision's arguments; with a ``point_head`` masks are refined (PointRend).
        ``mask_alignment``: see :class:`cellseg.config.ModelConfig`."""
        super().__init__(score_thresh=inference.score_threshold, nms_thresh=inference.nms_threshold, **parts)
        self.fg_bg_sampler = Sampler.like(self.fg_bg_sampler)
        self.box_coder = Float32BoxCoder(self.box_coder.weights)
        self.inference = inference
        self.point_head = point_head
        self.aligned_masks = mask_alignment == "aligned"

    def check_targets(self, targets: list[dict[str, Tensor]] | None) -> None:
        """Check that targets carry planes instead of masks."""
        assert targets is not None
        assert all({"boxes", "labels", "planes", "plane", "number"} <= target.keys() for target in targets)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections in evaluation or losses in training; the other is empty.

        A detection dict holds boxes (N, 4) in px of the network's input, labels (N,), scores (N,) and masks (N, 1, M,
        M) probabilities within the box. Losses are scalars, unweighted: ``loss_classifier``, ``loss_box_reg``,
        ``loss_mask``, ``loss_dice`` and, with a point head, ``loss_point``.
        """
        # Pooling needs float32 in contiguous memory: convert once for both heads instead of twice.
        features = {
            name: map_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
            for name, map_BCHW in features.items()
            if name in self.box_roi_pool.featmap_names
        }
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detect(features, proposals, image_shapes), {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        regions = self.regions(proposals, targets)
        boxes, labels = [of_image.boxes_P4 for of_image in regions], [of_image.labels_P for of_image in regions]
        levels_P = np.concatenate([of_image.levels_P for of_image in regions])
        box_features = self.box_head(self.box_roi_pool(features, boxes, image_shapes, levels_P))
        class_logits, deltas = self.box_predictor(box_features)
        class_loss, box_loss = self._box_losses(class_logits, deltas, regions, targets)

        rois = [of_image.boxes_P4[: of_image.on_cells] for of_image in regions]
        matched = [of_image.matched_P[: of_image.on_cells] for of_image in regions]
        labels_R = torch.cat(
            [labels_P[: of_image.on_cells] for labels_P, of_image in zip(labels, regions, strict=True)]
        )
        levels_R = np.concatenate([of_image.levels_P[: of_image.on_cells] for of_image in regions])
        logits_RCMM = self._mask_logits(features, rois, image_shapes, levels_R)
        logits_RMM = own_class(logits_RCMM, labels_R)
        truth_RMM = torch.cat(
            [
                roi_mask_targets(
                    t["planes"],
                    t["plane"],
                    t["number"],
                    boxes_R4,
                    index,
                    self.mask_side,
                    of_image.points_R2,
                    self.aligned_masks,
                )
                for t, boxes_R4, index, of_image in zip(targets, rois, matched, regions, strict=True)
            ]
        )
        losses = {
            "loss_classifier": class_loss,
            "loss_box_reg": box_loss,
            "loss_mask": cross_entropy_loss(logits_RMM, truth_RMM),
            "loss_dice": dice_loss(logits_RMM, truth_RMM),
        }
        if self.point_head is not None:
            losses["loss_point"] = point_loss(
                self.point_head, features["0"], logits_RCMM, labels_R, rois, matched, targets
            )
        return losses

    @property
    def mask_side(self) -> int:
        """M of the mask head, which doubles what is pooled."""
        return 2 * self.mask_roi_pool.output_size[0]

    @torch.no_grad()
    def regions(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> list[Regions]:
        """Draw the proposals that a step learns from, with torch's global generator.

        The cells' own boxes are proposals too; proposals without area are dropped. The host waits for a GPU once, for
        the numbers that decide the sizes of tensors.
        """
        self.check_targets(targets)
        drawn = [
            self._draw(torch.cat([proposals_P4.float(), target["boxes"].float()]), target)
            for proposals_P4, target in zip(proposals, targets, strict=True)
        ]
        numbers: list[Tensor] = []
        for boxes_P4, _, _, is_positive_P, is_negative_P in drawn:
            levels_P = self.box_roi_pool.levels_of(boxes_P4)
            points_P2 = sampling_points(boxes_P4, self.mask_side)
            numbers += [levels_P, points_P2.flatten(), is_positive_P, is_negative_P]
        parts = np.split(torch.cat(numbers).cpu().numpy(), np.cumsum([len(part) for part in numbers])[:-1])
        found = []
        for index, (boxes_P4, matched_P, labels_P, _, _) in enumerate(drawn):
            levels, points, is_positive, is_negative = parts[4 * index : 4 * index + 4]
            positive, first_negative = int(is_positive.sum()), int(is_negative.argmax())
            kept = [slice(0, positive), slice(first_negative, first_negative + int(is_negative.sum()))]
            found.append(
                Regions(
                    boxes_P4=torch.cat([boxes_P4[part] for part in kept]),
                    matched_P=torch.cat([matched_P[part] for part in kept]),
                    labels_P=torch.cat([labels_P[part] for part in kept]),
                    levels_P=np.concatenate([levels[part] for part in kept]),
                    points_R2=points.reshape(-1, 2)[:positive],
                )
            )
        return found

    def _draw(self, boxes_P4: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Boxes, cells and labels of the proposals drawn from an image, and whether each is positive or negative; some
        are neither. Within each kind, drawn ones come first."""
        true_boxes_N4 = target["boxes"].float()
        is_none_P = ~(boxes_P4[:, 2] > boxes_P4[:, 0])
        matched_P = torch.zeros(len(boxes_P4), dtype=torch.int64, device=boxes_P4.device)
        labels_P = matched_P
        if len(true_boxes_N4):
            overlap_P, matched_P = box_iou(true_boxes_N4, boxes_P4).max(dim=0)
            labels_P = torch.where(overlap_P >= self.proposal_matcher.high_threshold, target["labels"][matched_P], -1)
            labels_P = torch.where(overlap_P < self.proposal_matcher.low_threshold, 0, labels_P)
        labels_P = without_ignored(labels_P, boxes_P4, target.get("ignored"))
        drawn = self.fg_bg_sampler.draw(torch.where(is_none_P, -1, labels_P))
        index = torch.cat([drawn.positive_P, drawn.negative_Q])
        nowhere_P, nowhere_Q = torch.zeros_like(drawn.is_positive_P), torch.zeros_like(drawn.is_negative_Q)
        is_positive = torch.cat([drawn.is_positive_P, nowhere_Q])
        is_negative = torch.cat([nowhere_P, drawn.is_negative_Q])
        return boxes_P4[index], matched_P[index], labels_P[index], is_positive, is_negative

    def _box_losses(
        self, logits_PC: Tensor, deltas: Tensor, regions: list[Regions], targets: list[dict[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """torchvision's ``fastrcnn_loss``, which has to look up the positives."""
        logits_PC, deltas_PC4 = logits_PC.float(), deltas.float().unflatten(1, (-1, 4))
        labels_P = torch.cat([of_image.labels_P for of_image in regions])
        edges = np.cumsum([0, *(len(of_image.labels_P) for of_image in regions)]).tolist()
        on_cells = [
            slice(begin, begin + image.on_cells) for (begin, _), image in zip(pairwise(edges), regions, strict=True)
        ]
        predicted_R4 = own_class(
            torch.cat([deltas_PC4[part] for part in on_cells]), torch.cat([labels_P[part] for part in on_cells])
        )
        truth_R4 = torch.cat(
            [
                self.box_coder.encode_single(
                    target["boxes"][of_image.matched_P[: of_image.on_cells]], of_image.boxes_P4[: of_image.on_cells]
                )
                for target, of_image in zip(targets, regions, strict=True)
            ]
        )
        box_loss = F.smooth_l1_loss(predicted_R4, truth_R4, beta=1 / 9, reduction="sum") / len(labels_P)
        return F.cross_entropy(logits_PC, labels_P), box_loss

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, deltas = self.box_predictor(box_features)
        boxes, scores, labels = self.postprocess_detections(
            class_logits.float(), deltas.float(), proposals, image_shapes
        )
        images = range(len(boxes))
        masks = [
            self._masks(
                {k: map_BCHW[i : i + 1] for k, map_BCHW in features.items()}, boxes[i], labels[i], image_shapes[i]
            )
            for i in images
        ]
        return [{"boxes": boxes[i], "labels": labels[i], "scores": scores[i], "masks": masks[i]} for i in images]

    def _masks(
        self, features: dict[str, Tensor], boxes_N4: Tensor, labels_N: Tensor, image_shape: tuple[int, int]
    ) -> Tensor:
        """Predict the masks of one image's detections: (N, 1, M, M) probabilities."""
        masks = []
        chunks = zip(boxes_N4.split(MASKS_AT_ONCE), labels_N.split(MASKS_AT_ONCE), strict=True)
        for boxes_n4, labels_n in chunks:  # no detections are one empty chunk
            logits_nCMM = self._mask_logits(features, [boxes_n4], [image_shape])
            if self.point_head is None:
                masks += maskrcnn_inference(logits_nCMM, [labels_n])
            else:
                masks += refine_masks(self.point_head, features["0"], logits_nCMM, [boxes_n4], [labels_n])
        return torch.cat(masks)

    def _mask_logits(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
        levels_R: np.ndarray | None = None,
    ) -> Tensor:
        """Logits of the 28 x 28 masks of all classes, for the boxes of all images in turn, float32."""
        pooled_RFMM = self.mask_roi_pool(features, boxes, image_shapes, levels_R)
        return self.mask_predictor(self.mask_head(pooled_RFMM)).float()

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return boxes, scores and labels of each image, best first.

        torchvision's, step for step, but for the choice of the suppression.
        """
        counts = [len(boxes_P4) for boxes_P4 in proposals]
        boxes_of_image = self.box_coder.decode(box_regression, proposals).split(counts)
        scores_of_image = F.softmax(class_logits, dim=-1).split(counts)
        found = [
            self._select(clip_boxes_to_image(boxes_PC4, shape), scores_PC)
            for boxes_PC4, scores_PC, shape in zip(boxes_of_image, scores_of_image, image_shapes, strict=True)
        ]
        boxes, scores, labels = (list(values) for values in zip(*found, strict=True))
        return boxes, scores, labels

    def _select(self, boxes_PC4: Tensor, scores_PC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select the detections of one image: every class of a proposal is a candidate of its own."""
        labels_N = torch.arange(scores_PC.shape[1], device=scores_PC.device).expand_as(scores_PC)[:, 1:].flatten()
        boxes_N4, scores_N = boxes_PC4[:, 1:].reshape(-1, 4), scores_PC[:, 1:].flatten()
        likely = torch.where(scores_N > self.inference.score_threshold)[0]
        boxes_N4, scores_N, labels_N = boxes_N4[likely], scores_N[likely], labels_N[likely]
        solid = remove_small_boxes(boxes_N4, min_size=1e-2)
        boxes_N4, scores_N, labels_N = boxes_N4[solid], scores_N[solid], labels_N[solid]
        kept, scores_K = suppress(boxes_N4, scores_N, labels_N, self.inference, self.detections_per_img)
        return boxes_N4[kept], scores_K, labels_N[kept]
