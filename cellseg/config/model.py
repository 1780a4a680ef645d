"""The Mask R-CNN: torchvision's detector with exchangeable parts."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cellseg.config.base import Count, Part, parse_numbers
from cellseg.errors import Problem, RuleError
from cellseg.names import suggested_value

RESNETS = ("resnet10t", "resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d")
"""Backbones made of residual blocks with a 3x3 convolution, which support attention and deformable convolutions.
``resnet10t`` is timm's, for small machines, the others are torchvision's."""
EFFICIENTNETS = ("efficientnet_b0", "efficientnet_b1")
CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base")
"""Backbones with layer norms, which ``model.norm`` cannot replace."""
BACKBONES: tuple[str, ...] = (*RESNETS, *EFFICIENTNETS, *CONVNEXTS)
TIMM_PREFIX = "timm:"
NUM_STAGES = 5
"""Every backbone is divided into a stem and four stages, whose outputs have strides 4, 8, 16 and 32."""
NUM_LEVELS = 5
"""Levels of the FPN, strides 4, 8, 16, 32 and 64."""


class ModelConfig(Part):
    """The Mask R-CNN: torchvision's detector with exchangeable parts."""

    detector: Literal["v1", "v2"] = "v1"
    """``v2`` has convolutions with norm in box and mask head and in the FPN, and a deeper RPN (torchvision's v2)."""
    backbone: str = "resnet50"
    """The network that turns an image into feature maps: one of ``BACKBONES``, or ``timm:NAME`` for any timm model
    that has feature maps of strides 4, 8, 16 and 32."""
    weights: str = "imagenet"
    """``none``, ``imagenet`` (backbone), ``coco`` (whole detector, torchvision's ResNet-50 only), or a path: a
    state-dict file or a checkpoint folder."""
    weights_folder: str | None = None
    """Folder in which the files of ``imagenet`` and ``coco`` are looked for first, laid out as ``$TORCH_HOME`` is.
    None: in the caches only. Files that are nowhere are fetched into the cache."""
    norm: Literal["auto", "frozen", "batch", "group"] = "auto"
    """Batch norms of the backbone are kept (``batch``), fixed as loaded (``frozen``) or replaced (``group``); v2's
    heads have group norms for ``group`` and batch norms otherwise. ``auto``: frozen with pretrained weights, else
    group."""
    frozen_stages: Annotated[int, Field(ge=0, le=NUM_STAGES)] = 0
    """Number of leading backbone stages that stay as loaded, norms included: 1 is the stem, 4 all but the last stage, 5
    the whole backbone. The FPN always trains."""
    attention: Literal["none", "se", "cbam"] = "none"
    """Attention at the end of every residual block of the stages that train: squeeze-and-excitation over channels (Hu
    et al. 2018), or CBAM over channels and places (Woo et al. 2018). ResNet family only."""
    attention_reduction: Annotated[int, Field(ge=1, le=64)] = 16
    """The hidden layer of attention has this many times fewer channels than the block."""
    deformable_stages: Annotated[int, Field(ge=0, le=3)] = 0
    """Number of last stages whose 3x3 convolutions are modulated deformable ones (Zhu et al. 2019), which start as the
    convolutions they replace. ResNet family only; these stages must train."""
    fpn_channels: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = 256
    """Channels of every FPN level."""
    normalization: str = "imagenet"
    """Normalisation of pixel values in [0, 1] before the backbone: ``imagenet`` (its mean and standard deviation),
    ``dataset`` (those of the training images), ``none``, or ``R,G,B/R,G,B`` for mean and deviation."""
    anchors: str = "auto"
    """Anchor sizes in pixels of the network's input, ``SMALLEST-LARGEST`` in factors of two: torchvision's are
    ``32-512``. Five sizes give each FPN level one; with more, the smallest share the finest level. ``auto``: from the
    cell sizes of the training set."""
    anchor_ratios: str = "0.5,1,2"
    """Height / width of the anchors of each size, rising."""
    roi_levels: Literal["0,1", "0,1,2,3"] = "0,1,2,3"
    """FPN levels, finest first, from which the box and mask heads pool."""
    rpn_candidates: Count | Literal["auto"] = "auto"
    """Anchors per image and FPN level, best first, that enter the RPN's non-maximum suppression. ``auto``: four times
    the largest number of cells in an image, at least 1000."""
    rpn_proposals: Count | Literal["auto"] = "auto"
    """Largest number of proposals per image after it. ``auto``: twice the largest number of cells in an image, at
    least 1000."""
    rpn_nms_threshold: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Proposals that overlap a better one by more than this IoU are dropped."""
    rpn_samples: Annotated[int, Field(ge=2)] = 256
    """Anchors per image that the RPN's losses sample."""
    rpn_positive_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Largest share of cells (positives) among the sampled anchors."""
    rpn_assignment: Literal["iou", "atss"] = "atss"
    """Matching of anchors to cells. ``atss``: anchors near a cell's centre whose IoU reaches the mean plus the standard
    deviation of all anchors near it (Zhang et al. 2020). ``iou``: by ``rpn_foreground_iou``, as torchvision does.
    docs/anchors.md compares them."""
    rpn_foreground_iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    """iou: an anchor is matched to the cell it overlaps most if their IoU is at least this."""
    rpn_background_iou: Annotated[float, Field(gt=0, le=1)] = 0.3
    """iou: an anchor is background if its IoU with every cell is below this. Anchors between both are ignored."""
    rpn_atss_places: Count = 9
    """atss: number of places per FPN level, nearest to a cell's centre, whose anchors are candidates."""
    rpn_best_anchor: bool = True
    """Match the anchors that overlap a cell most even below the threshold, so that every cell has an anchor."""
    roi_samples: Count = 512
    """Proposals per image that are sampled for the losses of the heads."""
    roi_positive_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Largest share of cells (positives) among the sampled proposals."""
    box_head_width: Annotated[int, Field(ge=8, le=16384)] = 1024
    """Features of the box head's fully connected layers."""
    mask_head: Literal["plain", "pointrend"] = "plain"
    """``plain`` predicts 28 x 28 masks; ``pointrend`` refines them where they are uncertain (Kirillov et al. 2020)."""
    mask_alignment: Literal["torchvision", "aligned"] = "torchvision"
    """Where a mask lies in its box, in training and prediction. ``torchvision`` reads targets half a pixel beside the
    cell and pastes into whole pixels, which costs a perfect 28 x 28 mask of a small cell 7 % of its IoU. ``aligned``
    puts every bin where it is."""
    mask_head_layers: Annotated[int, Field(ge=1, le=8)] = 4
    """Convolutions of the mask head before its upsampling."""
    mask_head_width: Annotated[int, Field(ge=8, le=4096, multiple_of=8)] = 256
    """Channels of the mask head's convolutions."""
    point_samples: Count = 196
    """pointrend: points per cell in a training step, and points refined after each doubling in prediction."""
    point_doublings: Annotated[int, Field(ge=1, le=3)] = 2
    """pointrend: number of times a predicted mask is doubled and refined: 28, 56, 112, 224 pixels."""
    detections_per_image: Count | Literal["auto"] = "auto"
    """Maximum number of detections per image. ``auto``: twice the largest number of cells in an image, at least 100."""
    max_trainable: Count = 200_000_000
    """Limit on trainable parameters; a larger model is refused."""

    @property
    def weights_path(self) -> Path | None:
        """``weights_folder`` as a path."""
        return None if self.weights_folder is None else Path(self.weights_folder).expanduser()

    @field_validator("backbone")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BACKBONES and not re.fullmatch(rf"{TIMM_PREFIX}\w[\w.]*", value):
            law = f"must be timm:NAME or one of {', '.join(BACKBONES)}"
            raise RuleError(Problem("", law, f"'{value}'", suggested_value(value, BACKBONES)))
        return value

    @field_validator("anchors")
    @classmethod
    def _anchor_range(cls, value: str) -> str:
        if value != "auto":
            parse_anchor_range(value)
        return value

    @field_validator("anchor_ratios")
    @classmethod
    def _ratios(cls, value: str) -> str:
        parse_numbers(value, "ratios")
        return value

    @field_validator("normalization")
    @classmethod
    def _mean_and_std(cls, value: str) -> str:
        if value != "dataset":
            parse_normalization(value)
        return value

    @model_validator(mode="after")
    def _rules(self) -> Self:
        problems = [*self._stage_problems(), *self._weights_problems()]
        if self.rpn_background_iou > self.rpn_foreground_iou:
            problems.append(
                Problem(
                    "model.rpn_background_iou",
                    "rpn_background_iou <= rpn_foreground_iou must hold",
                    f"rpn_background_iou={self.rpn_background_iou}, rpn_foreground_iou={self.rpn_foreground_iou}",
                    "Lower it.",
                )
            )
        if problems:
            raise RuleError(*problems)
        return self

    def _stage_problems(self) -> list[Problem]:
        found = []
        changes = {"attention": self.attention != "none", "deformable_stages": self.deformable_stages > 0}
        for name in (name for name, asked in changes.items() if asked):
            value = getattr(self, name)
            if self.backbone not in RESNETS:
                got = f"{name}={value} with backbone '{self.backbone}'"
                remedy = f"Use one of {', '.join(RESNETS)}."
                found.append(Problem(f"model.{name}", "needs residual blocks", got, remedy))
            elif self.frozen_stages == NUM_STAGES:
                got = f"{name}={value} with frozen_stages={NUM_STAGES}"
                found.append(Problem(f"model.{name}", "needs a stage that trains", got, "Freeze fewer."))
        if self.deformable_stages + self.frozen_stages > NUM_STAGES:
            got = f"deformable_stages={self.deformable_stages} with frozen_stages={self.frozen_stages} of {NUM_STAGES}"
            found.append(Problem("model.deformable_stages", "these last stages must train", got, "Lower one."))
        if self.norm != "auto" and self.backbone in CONVNEXTS:
            law = f"'{self.backbone}' has layer norms, which stay"
            found.append(Problem("model.norm", law, f"norm={self.norm}", "Use auto."))
        return found

    def _weights_problems(self) -> list[Problem]:
        found = []
        if self.weights in {"imagenet", "coco"} and self.norm == "group":
            law = f"{self.weights} weights need batch statistics"
            found.append(Problem("model.norm", law, "norm=group", "Use norm=auto, or weights=none."))
        if self.weights == "coco":
            default = type(self).model_fields
            fixed = ["fpn_channels", "box_head_width", "mask_head_layers", "mask_head_width"]
            changed = [name for name in fixed if getattr(self, name) != default[name].default]
            if self.backbone != "resnet50":
                law = "coco weights exist for backbone resnet50 only"
                found.append(Problem("model.weights", law, f"'{self.backbone}'", "Use imagenet."))
            if changed:
                got = f"other values of {', '.join(changed)}"
                remedy = "Use imagenet, or leave them out."
                found.append(Problem("model.weights", "coco weights need the default widths", got, remedy))
            if len(parse_numbers(self.anchor_ratios, "ratios")) != 3:
                got = f"anchor_ratios={self.anchor_ratios}"
                remedy = "Give three, or use imagenet."
                found.append(Problem("model.weights", "coco weights have three aspect ratios", got, remedy))
        return found


def parse_anchor_range(text: str) -> tuple[int, ...]:
    """Parse ``"8-128"`` into (8, 16, 32, 64, 128), in pixels.

    Raises:
        RuleError: not ``SMALLEST-LARGEST``, not in factors of two, or fewer than the five sizes that five levels need.
    """
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match:
        raise RuleError(Problem("", "must be 'auto' or SMALLEST-LARGEST like '8-128'", f"'{text}'"))
    size, largest = int(match[1]), int(match[2])
    sizes = []
    while 0 < size <= largest:
        sizes.append(size)
        size *= 2
    if not sizes or sizes[-1] != largest or len(sizes) < 5:
        law = "SMALLEST must double at least four times to reach LARGEST"
        raise RuleError(Problem("", law, f"'{text}'", "'8-128' is 8,16,32,64,128."))
    return tuple(sizes)


def sizes_per_level(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return one tuple of sizes (px) per FPN level, finest first; surplus small sizes share the finest level."""
    surplus = len(sizes) - NUM_LEVELS
    assert surplus >= 0, f"{NUM_LEVELS} levels need as many sizes"
    return (tuple(sizes[: surplus + 1]), *((size,) for size in sizes[surplus + 1 :]))


def parse_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Parse ``imagenet``, ``none`` or ``R,G,B/R,G,B`` into mean and standard deviation of pixel values in [0, 1].

    Raises:
        RuleError: anything else, ``dataset`` included: :func:`cellseg.data.auto.resolve_auto` turns it into numbers.
    """
    if text == "imagenet":
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if text == "none":
        return (0.0,) * 3, (1.0,) * 3
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if not (len(mean) == len(std) == 3 and all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        law = "must be imagenet, dataset, none or R,G,B/R,G,B with mean in [0, 1] and deviation in (0, 1]"
        raise RuleError(Problem("", law, f"'{text}'"))
    return mean, std
