"""RoI heads that never see an N x H x W mask tensor.

Training reads mask targets out of the instance planes; prediction returns the raw 28 x 28 probabilities, which
:mod:`cellseg.predict` turns into RLE inside each box. Everything else is torchvision's.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from cellseg.data.targets import roi_mask_targets


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

    def check_targets(self, targets: list[dict[str, Tensor]] | None) -> None:
        """Targets carry planes instead of masks."""
        assert targets is not None
        assert all({"boxes", "labels", "planes", "plane", "number"} <= target.keys() for target in targets)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in evaluation, losses in training; the other is empty.

        A detection dict holds boxes (N, 4) in px of the network's input, labels (N,), scores (N,) and masks (N, 1, M,
        M) probabilities within the box.
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

        is_cell = [labels_R > 0 for labels_R in labels]
        rois = [boxes_R4[keep] for boxes_R4, keep in zip(proposals, is_cell, strict=True)]
        matched = [matched_R[keep] for matched_R, keep in zip(matched, is_cell, strict=True)]
        mask_features = self.mask_head(self.mask_roi_pool(features, rois, image_shapes))
        mask_loss = _mask_loss(self.mask_predictor(mask_features), rois, matched, targets)
        return {"loss_classifier": class_loss, "loss_box_reg": box_loss, "loss_mask": mask_loss}

    def _detect(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        boxes, scores, labels = self.postprocess_detections(*self.box_predictor(box_features), proposals, image_shapes)
        mask_features = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        masks = maskrcnn_inference(self.mask_predictor(mask_features), labels)
        return [
            {"boxes": b, "labels": c, "scores": s, "masks": m}
            for b, c, s, m in zip(boxes, labels, scores, masks, strict=True)
        ]


def _mask_loss(
    logits_RCMM: Tensor, rois: list[Tensor], matched: list[Tensor], targets: list[dict[str, Tensor]]
) -> Tensor:
    """Mean binary cross-entropy of each positive RoI's mask for its own class (He et al. 2017); 0 without RoIs."""
    if logits_RCMM.shape[0] == 0:
        return logits_RCMM.sum() * 0  # keeps the graph, so that every parameter gets a gradient
    labels_R = torch.cat([target["labels"][index] for target, index in zip(targets, matched, strict=True)])
    truth_RMM = torch.cat(
        [
            roi_mask_targets(t["planes"], t["plane"], t["number"], boxes_R4, index, logits_RCMM.shape[-1])
            for t, boxes_R4, index in zip(targets, rois, matched, strict=True)
        ]
    )
    own_class_RMM = logits_RCMM[torch.arange(len(labels_R), device=labels_R.device), labels_R]
    return F.binary_cross_entropy_with_logits(own_class_RMM, truth_RMM)
