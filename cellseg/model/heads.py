"""RoI heads that never see an N x H x W mask tensor.

Training reads mask targets out of the instance planes; prediction returns the probabilities within each box, which
:mod:`cellseg.inference.paste` turns into RLE inside it. Everything else is torchvision's.

Shape suffixes: P proposals, R positive regions of interest (RoIs), N detections, C classes with background first,
M side of a mask, 4 = x1, y1, x2, y2 in pixels of the network's input.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.poolers import initLevelMapper

from cellseg.config import InferenceConfig
from cellseg.data.targets import roi_mask_targets
from cellseg.model.ignore import without_ignored
from cellseg.model.mask_losses import cross_entropy_loss, dice_loss, own_class
from cellseg.model.nms import suppress
from cellseg.model.pointrend import PointHead, point_loss, refine_masks

MASKS_AT_ONCE = 256
"""Detections that go through the mask head together in prediction: its layers take 2 MB of each."""


class PyramidRoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling from FPN levels, with the strides known instead of guessed.

    torchvision guesses them at the first forward, from that batch's image sizes before padding, for the life of the
    module. An image 33 px high is padded to 64: it would halve the strides for every image after it, and what a run
    learns would depend on which images came first, after a resume too.
    """

    def __init__(self, levels: list[str], output_size: int):
        """``levels`` are names of FPN levels, ``"0"`` (stride 4) to ``"3"`` (stride 32), finest first."""
        super().__init__(levels, output_size, sampling_ratio=2)
        exponents = [2 + int(level) for level in levels]
        self.scales = [2.0**-exponent for exponent in exponents]
        self.map_levels = initLevelMapper(exponents[0], exponents[-1])


class CellRoIHeads(RoIHeads):
    """Box and mask heads. Targets are those of :func:`cellseg.data.targets.make_target`."""

    def __init__(self, inference: InferenceConfig, point_head: PointHead | None, **parts: Any):
        """``parts`` are torchvision's arguments; with a ``point_head`` masks are refined (PointRend)."""
        super().__init__(score_thresh=inference.score_threshold, nms_thresh=inference.nms_threshold, **parts)
        self.inference = inference
        self.point_head = point_head

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
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_loss, box_loss = fastrcnn_loss(*self.box_predictor(box_features), labels, box_targets)

        is_cell = [labels_P > 0 for labels_P in labels]
        rois = [boxes_P4[keep] for boxes_P4, keep in zip(proposals, is_cell, strict=True)]
        matched = [matched_P[keep] for matched_P, keep in zip(matched, is_cell, strict=True)]
        labels_R = torch.cat([labels_P[keep] for labels_P, keep in zip(labels, is_cell, strict=True)])
        logits_RCMM = self._mask_logits(features, rois, image_shapes)
        logits_RMM = own_class(logits_RCMM, labels_R)
        truth_RMM = torch.cat(
            [
                roi_mask_targets(t["planes"], t["plane"], t["number"], boxes_R4, index, logits_RMM.shape[-1])
                for t, boxes_R4, index in zip(targets, rois, matched, strict=True)
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

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """For each image the regions to learn from, the cell of each, its class (0 background), and its box's deltas.

        torchvision's, step for step, but for what is ignored.
        """
        self.check_targets(targets)
        assert targets is not None
        truths = [target["boxes"].to(proposals[0].dtype) for target in targets]
        proposals = self.add_gt_proposals(proposals, truths)
        matched, labels = self.assign_targets_to_proposals(proposals, truths, [t["labels"] for t in targets])
        labels = without_ignored(labels, proposals, targets)
        sampled = self.subsample(labels)
        proposals, matched, labels = (
            [values[index] for values, index in zip(of_images, sampled, strict=True)]
            for of_images in (proposals, matched, labels)
        )
        truths = [boxes_N4 if len(boxes_N4) else boxes_N4.new_zeros(1, 4) for boxes_N4 in truths]
        own_boxes = [boxes_N4[index] for boxes_N4, index in zip(truths, matched, strict=True)]
        return proposals, matched, labels, list(self.box_coder.encode(own_boxes, proposals))

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, deltas = self.box_predictor(box_features)
        boxes, scores, labels = self.postprocess_detections(class_logits, deltas, proposals, image_shapes)
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
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Logits of the 28 x 28 masks of all classes, for the boxes of all images in turn."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

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
