"""Construction of a Mask R-CNN (He et al. 2017) on an FPN (Lin et al. 2017) from torchvision's parts."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from cellseg.config import InferenceConfig, ModelConfig, parse_anchor_range, parse_numbers
from cellseg.errors import UserError
from cellseg.model.anchors import CellAnchors, build_rpn_head
from cellseg.model.atss import assign_by_statistics
from cellseg.model.backbones import FPNBackbone, build_body
from cellseg.model.detector import Detector, Normalize
from cellseg.model.heads import CellRoIHeads
from cellseg.model.norms import group_norm
from cellseg.model.pointrend import PointHead
from cellseg.model.pooling import PyramidRoIAlign
from cellseg.model.rpn import CellRPN
from cellseg.model.weights import eps_of_coco, load_detector_weights


def build_model(config: ModelConfig, inference: InferenceConfig, num_classes: int, *, load: bool = True) -> nn.Module:
    """Build the detector for ``num_classes`` classes of cells (background not counted).

    In training the model maps (images, targets) to a dict of scalar losses, in evaluation images to a list of dicts
    (see :class:`cellseg.model.heads.CellRoIHeads`). Images are (3, H, W) float32 in [0, 1] and may differ in size;
    targets are those of :func:`cellseg.data.targets.make_target`. New layers draw their values from torch's global
    generator.

    Args:
        config: resolved by :func:`cellseg.data.auto.resolve_auto`: numbers for anchors, proposals, detections and
            normalisation.
        inference: which detections the model returns.
        load: False leaves pretrained weights out, for a model whose whole state is loaded next.

    Raises:
        UserError: unknown backbone, weights that cannot be had, or too many trainable parameters.
    """
    resolved = (config.anchors, config.detections_per_image, config.rpn_candidates, config.rpn_proposals)
    assert "auto" not in resolved and config.normalization != "dataset", "resolve_auto comes first"
    pretrained = load and config.weights == "imagenet"
    body = build_body(config, pretrained=pretrained, norm=resolved_norm(config))
    # v1 has no norm outside the backbone. v2 has batch norm there, in training mode, as torchvision's has.
    v2 = config.detector == "v2"
    head_norm: Callable[[int], nn.Module] | None = None
    if v2:
        head_norm = group_norm if resolved_norm(config) == "group" else nn.BatchNorm2d
    backbone = FPNBackbone(body, config.fpn_channels, head_norm)
    model = Detector(
        backbone,
        _rpn(config, v2),
        _roi_heads(config, inference, num_classes + 1, head_norm),
        Normalize(config.normalization),
    )
    eps = eps_of_coco(config.detector)
    if config.weights == "coco" and eps is not None:
        overwrite_eps(model, eps)
    if load:
        load_detector_weights(model, config.weights, config.detector, config.weights_path)
    _check_size(model, config.max_trainable)
    return model


def resolved_norm(config: ModelConfig) -> str:
    """Return ``batch``, ``frozen`` or ``group``: frozen statistics need weights that have some, small batches need
    group norm."""
    if config.norm != "auto":
        return config.norm
    return "group" if config.weights == "none" else "frozen"


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Count the parameters; with ``trainable`` only those that receive gradients."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _rpn(config: ModelConfig, v2: bool) -> CellRPN:
    generator = CellAnchors(parse_anchor_range(config.anchors), parse_numbers(config.anchor_ratios, "ratios"))
    assign = None
    if config.rpn_assignment == "atss":
        assign = partial(assign_by_statistics, places=config.rpn_atss_places, best_anchor=config.rpn_best_anchor)
    return CellRPN(
        generator,
        build_rpn_head(generator, config.fpn_channels, conv_depth=2 if v2 else 1),
        fg_iou_thresh=config.rpn_foreground_iou,
        bg_iou_thresh=config.rpn_background_iou,
        batch_size_per_image=config.rpn_samples,
        positive_fraction=config.rpn_positive_fraction,
        pre_nms_top_n=dict.fromkeys(("training", "testing"), config.rpn_candidates),
        post_nms_top_n=dict.fromkeys(("training", "testing"), config.rpn_proposals),
        nms_thresh=config.rpn_nms_threshold,
        best_anchor=config.rpn_best_anchor,
        assign=assign,
    )


def _roi_heads(
    config: ModelConfig,
    inference: InferenceConfig,
    num_outputs: int,
    head_norm: Callable[[int], nn.Module] | None,
) -> CellRoIHeads:
    channels, width = config.fpn_channels, config.box_head_width
    levels = config.roi_levels.split(",")
    if head_norm is None:
        box_head: nn.Module = TwoMLPHead(channels * 7 * 7, width)
    else:
        box_head = FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [width], norm_layer=head_norm)
    mask_widths = [config.mask_head_width] * config.mask_head_layers
    return CellRoIHeads(
        inference=inference,
        mask_alignment=config.mask_alignment,
        box_roi_pool=PyramidRoIAlign(levels, output_size=7),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(width, num_outputs),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=config.roi_samples,
        positive_fraction=config.roi_positive_fraction,
        bbox_reg_weights=None,
        detections_per_img=config.detections_per_image,
        mask_roi_pool=PyramidRoIAlign(levels, output_size=14),
        mask_head=MaskRCNNHeads(channels, mask_widths, 1, norm_layer=head_norm),
        mask_predictor=MaskRCNNPredictor(config.mask_head_width, config.mask_head_width, num_outputs),
        point_head=_point_head(config, num_outputs),  # last: the others' values do not depend on it
    )


def _point_head(config: ModelConfig, num_outputs: int) -> PointHead | None:
    if config.mask_head == "plain":
        return None
    return PointHead(
        config.fpn_channels,
        config.mask_head_width,
        num_outputs,
        samples=config.point_samples,
        doublings=config.point_doublings,
    )


def _check_size(model: nn.Module, limit: int) -> None:
    trainable = count_parameters(model, trainable=True)
    if trainable > limit:
        raise UserError(
            f"model.max_trainable: at most {limit:,} trainable parameters are allowed, but got {trainable:,}, "
            f"{trainable - limit:,} too many. Freeze stages or use a smaller backbone."
        )
