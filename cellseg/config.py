"""The settings of one training run: typed, frozen and strict.

A :class:`TrialConfig` has six parts. The same config trains alone, inside a search, and predicts after export. Outside
Python it is a flat mapping with dotted keys (``{"optim.lr": 1e-3}``): that is what a space samples and a checkpoint
stores. A key that no field answers to is an error that names the nearest field.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from cellseg.errors import UserError, raise_all
from cellseg.files import YAMLError, parse_yaml

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

Metric = Literal["segm/AP", "segm/AP50", "segm/AP75", "segm/AP@all", "segm/AP50@all", "segm/AP75@all"]
"""``segm/AP`` is COCO's AP at 100 detections per image and class, as leaderboards run it; ``@all`` has no such limit.
All are in [0, 1] and larger is better."""
METRICS: tuple[str, ...] = get_args(Metric)

Backbone = Literal["resnet10t", "resnet18", "resnet34", "resnet50", "resnet101"]
"""``cellseg.model.backbones.BACKBONES`` says what each name builds. ``resnet10t`` is timm's, for small machines."""


class _Part(BaseModel):
    # strict: "8" is no number and 1 is no text. Integers are still taken where a float is asked for.
    # Infinity is refused because JSON, and so a checkpoint, cannot hold it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(_Part):
    """Where the images are, how they are read, split and brought to the network's scale."""

    root: str | None = None
    """Folder of the data set. Commands take ``--data`` over it."""
    layout: Literal["auto", "release", "coco"] = "auto"
    """``release``: ``train/<id>/image.tif`` and ``classK.tif`` beside it; ``coco``: an annotation JSON beside
    images."""
    annotations: str | None = None
    """COCO layout: the annotation file, relative to ``root``. None: the only COCO JSON found in ``root``."""
    instances: Literal["ids", "components"] = "ids"
    """Release layout: a class map has one value per cell, or is a binary mask whose connected components are cells."""
    color: Literal["rgb", "grey"] = "rgb"
    """``grey`` gives the network the image's luminance in all three channels, in training and prediction alike."""
    shorter_side: Annotated[int, Field(ge=32)] | None = None
    """Images are scaled to this shorter side, in pixels. None: native size."""
    longer_side: Annotated[int, Field(ge=32)] = 1333
    """No image is larger than this on its longer side after scaling, in pixels; it is scaled down to fit."""
    crop: Annotated[int, Field(ge=32)] | None = None
    """Training sees random square crops of this many pixels of the scaled image. None: whole images."""
    num_folds: Annotated[int, Field(ge=2)] = 5
    """The training images are split, stratified by class, into this many folds of equal size."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that validates; the others train."""
    split_seed: Seed = 0
    """Seed of the split. Trials that are to be compared must share it."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.fold >= self.num_folds:
            raise ValueError(
                f"data.fold: fold < num_folds must hold, but got fold={self.fold}, "
                f"num_folds={self.num_folds}. Folds count from 0."
            )
        if self.shorter_side is not None and self.shorter_side > self.longer_side:
            raise ValueError(
                f"data.shorter_side: shorter_side <= longer_side must hold, but got "
                f"shorter_side={self.shorter_side}, longer_side={self.longer_side}. Swap them?"
            )
        return self


class AugmentConfig(_Part):
    """Random changes to training images; validation and prediction see none."""

    preset: Literal["none", "flips", "color", "geometric", "elastic", "full"] = "flips"
    """Named pipeline, see ``cellseg/data/augment.py``. All but ``none`` flip and turn by quarters."""
    strength: Fraction = 0.5
    """How far the preset's ranges reach, from 0 (hardly) to 1 (as far as cells stay cells). Not for none and flips."""


class ModelConfig(_Part):
    """The Mask R-CNN: torchvision's detector with the parts below exchanged."""

    detector: Literal["v1", "v2"] = "v1"
    """``v2`` has convolutions with norm in box and mask head and in the FPN, and a deeper RPN (torchvision's v2)."""
    backbone: Backbone = "resnet50"
    """The network that turns an image into feature maps."""
    weights: str = "imagenet"
    """``none``, ``imagenet`` (backbone), ``coco`` (whole detector, torchvision's ResNet-50 only), or a path: a
    state-dict file or a checkpoint folder."""
    norm: Literal["auto", "frozen", "batch", "group"] = "auto"
    """Norm layers. ``auto``: frozen batch norm with pretrained weights, group norm without."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 0
    """How many leading backbone stages stay as loaded: 1 is the stem, 5 the whole backbone of a ResNet."""
    fpn_channels: Annotated[int, Field(ge=8, multiple_of=8)] = 256
    """Channels of every FPN level."""
    anchors: str = "auto"
    """Anchor sizes in pixels of the network's input, ``SMALLEST-LARGEST`` in factors of two: torchvision's are
    ``32-512``. Five sizes give each FPN level one; of more, the smallest share the finest level. ``auto``: from the
    cell sizes of the training set."""
    roi_levels: Literal["0,1", "0,1,2,3"] = "0,1,2,3"
    """FPN levels, finest first, from which the box and mask heads pool."""
    rpn_proposals: Count = 1000
    """Proposals per image after the RPN's non-maximum suppression, and candidates per level before it."""
    roi_samples: Count = 512
    """Proposals per image that the heads' losses sample."""
    box_head_width: Annotated[int, Field(ge=8)] = 1024
    """Features of the box head's fully connected layers."""
    mask_head_layers: Annotated[int, Field(ge=1, le=8)] = 4
    """Convolutions of the mask head before its upsampling."""
    mask_head_width: Annotated[int, Field(ge=8, multiple_of=8)] = 256
    """Channels of the mask head's convolutions."""
    detections_per_image: Count | Literal["auto"] = "auto"
    """Most detections kept per image. ``auto``: twice the most cells of any training image, at least 100."""
    max_trainable: Count = 200_000_000
    """A model with more trainable parameters is refused."""

    @field_validator("anchors")
    @classmethod
    def _anchor_range(cls, value: str) -> str:
        if value != "auto":
            parse_anchor_range(value)
        return value

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.weights in {"imagenet", "coco"} and self.norm == "group":
            raise ValueError(
                f"model.norm: {self.weights} weights need batch statistics, but got norm=group. "
                "Use norm=auto, or weights=none."
            )
        if self.weights == "coco":
            default = type(self).model_fields
            fixed = ["fpn_channels", "box_head_width", "mask_head_layers", "mask_head_width"]
            changed = [name for name in fixed if getattr(self, name) != default[name].default]
            if self.backbone != "resnet50":
                raise ValueError(
                    f"model.weights: coco weights exist for backbone resnet50 only, but got "
                    f"'{self.backbone}'. Use imagenet."
                )
            if changed:
                raise ValueError(
                    f"model.weights: coco weights need the default widths, but {', '.join(changed)} "
                    "differ. Use imagenet, or leave them out."
                )
        return self


class OptimConfig(_Part):
    """Optimiser and learning-rate schedule."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """``sgd`` with momentum, or ``adamw`` with torch's betas."""
    lr: Positive = 1e-4
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Pull of all weights towards 0: added to the gradients by SGD, apart from them (decoupled) by AdamW."""
    schedule: Literal["constant", "step", "warmup-cosine"] = "warmup-cosine"
    """Course of the learning rate over the whole ``train.epochs``, also when a trial is stopped early."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """warmup-cosine: share of all steps in which the rate rises linearly from 0 to ``lr``."""
    step_epochs: Count = 3
    """step: epochs between two decays."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """step: factor of each decay."""
    clip_norm: Positive | None = 10.0
    """Gradients are scaled down to this total 2-norm. None: never."""


class TrainConfig(_Part):
    """The training loop."""

    epochs: Count = 50
    """Full length of the run in epochs; the schedule is laid over it."""
    batch_size: Count = 2
    """Images per optimiser step."""
    metric: Metric = "segm/AP50"
    """Validation metric that picks the best epoch, prunes and ranks. Larger is better."""
    patience: Count | None = None
    """End after this many epochs without a new best. None: never."""
    amp: Literal["off", "bf16", "fp16"] = "bf16"
    """Mixed precision on a GPU; a CPU always computes in float32."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Loader processes. The samples are the same for any number."""
    seed: Seed = 0
    """Seed of weights, order, augmentation and sampling."""


class InferenceConfig(_Part):
    """From network outputs to detections."""

    score_threshold: Fraction = 0.05
    """Detections below this score are dropped. For ranking keep it low: a higher one never raises AP."""
    nms_threshold: Fraction = 0.5
    """Of two boxes of a class that overlap by more than this IoU the lower-scored one is dropped."""
    mask_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A pixel belongs to a cell where the mask's probability is at least this."""


class TrialConfig(_Part):
    """Everything one training run depends on, beside the data itself and the device."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any], where: str = "config") -> Self:
        """The config with the values of ``flat`` (dotted keys) over the defaults.

        Raises:
            UserError: every unknown key and every bad value, each a line that starts with ``where``.
        """
        problems = [f"{where}: {problem}" for key in flat if (problem := unknown_key(key))]
        nested: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            if key in FIELDS:
                part, name = key.split(".")
                nested.setdefault(part, {})[name] = value
        try:
            config = cls.model_validate(nested)
        except ValidationError as error:
            raise UserError(
                *problems, *(f"{where}: {line}" for line in describe(error.errors(include_url=False)))
            ) from None
        if problems:
            raise UserError(*problems)
        return config

    @classmethod
    def from_nested(cls, nested: Any, where: str = "config") -> Self:
        """As :meth:`from_flat`, from ``{part: {field: value}}`` or any mixture of nested and dotted keys."""
        return cls.from_flat(flatten(nested, where), where)

    def to_flat(self) -> dict[str, Any]:
        """Every field as ``{dotted key: JSON value}``, in the order of declaration."""
        return {f"{part}.{name}": value for part, fields in self.model_dump().items() for name, value in fields.items()}

    def replace(self, **flat: Any) -> Self:
        """A copy with other values, validated. Keys are written with two underscores: ``replace(optim__lr=0.1)``."""
        return type(self).from_flat(self.to_flat() | {key.replace("__", "."): value for key, value in flat.items()})


FIELDS: dict[str, Any] = {
    f"{part}.{name}": field
    for part, part_field in TrialConfig.model_fields.items()
    for name, field in part_field.annotation.model_fields.items()  # type: ignore[union-attr]
}
"""Every dotted key, with pydantic's description of the field."""

ACTIVE_WHEN: dict[str, tuple[str, frozenset[str]]] = {
    "augment.strength": ("augment.preset", frozenset({"color", "geometric", "elastic", "full"})),
    "optim.momentum": ("optim.optimizer", frozenset({"sgd"})),
    "optim.warmup_fraction": ("optim.schedule", frozenset({"warmup-cosine"})),
    "optim.step_epochs": ("optim.schedule", frozenset({"step"})),
    "optim.gamma": ("optim.schedule", frozenset({"step"})),
}
"""Fields that only matter for some values of another field. A space must not sample them without that condition."""


def unknown_key(key: str) -> str | None:
    """The problem with ``key`` if it names no field, with the nearest that does; None if it is fine."""
    if key in FIELDS:
        return None
    near = difflib.get_close_matches(str(key), FIELDS, n=1, cutoff=0.5)
    tail = str(key).rsplit(".", 1)[-1]
    same_tail = [name for name in FIELDS if name.rsplit(".", 1)[-1] == tail]
    hint = (same_tail or near)[:1]
    return f"{key}: must be a config field, but got an unknown name. " + (
        f"Did you mean '{hint[0]}'?" if hint else "See cellseg/config.py for the fields."
    )


def check_value(key: str, value: Any) -> str | None:
    """What is wrong with ``value`` for the field ``key``, looking at that field alone; None if it is fine."""
    part, name = key.split(".")
    part_model = TrialConfig.model_fields[part].annotation
    try:
        part_model.__pydantic_validator__.validate_assignment(part_model.model_construct(), name, value)  # type: ignore[union-attr]
    except ValidationError as error:
        # Rules over several fields have no place of their own: they are judged once all values are known.
        own = [finding for finding in error.errors(include_url=False) if finding["loc"]]
        return describe(own, prefix=part)[0] if own else None
    return None


def flatten(nested: Any, where: str) -> dict[str, Any]:
    """``{"optim": {"lr": 1}, "train.seed": 0}`` as ``{"optim.lr": 1, "train.seed": 0}``.

    Raises:
        UserError: not a mapping, or a key given twice.
    """
    if not isinstance(nested, Mapping):
        raise UserError(f"{where}: must be a mapping of settings, but got {type(nested).__name__}.")
    flat: dict[str, Any] = {}
    for key, value in _leaves(nested, ""):
        if key in flat:
            raise UserError(f"{where}: {key}: must be set once, but got it nested and dotted. Remove one.")
        flat[key] = value
    return flat


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``["optim.lr=1e-3"]`` of a command line as ``{"optim.lr": 0.001}``; values are YAML. Keys are not checked here.

    Raises:
        UserError: every item without ``=`` or with a value that is not YAML.
    """
    problems, values = [], {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problems.append(f"--set: must be KEY=VALUE, but got '{text}'.")
            continue
        try:
            values[key.strip()] = parse_yaml(value)
        except YAMLError as error:
            problems.append(f"--set {key}: must be a YAML value, but got '{value}' ({' '.join(str(error).split())}).")
    raise_all(problems)
    return values


def _leaves(mapping: Mapping, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and not prefix and key in TrialConfig.model_fields:
            yield from _leaves(value, f"{key}.")
        else:
            yield f"{prefix}{key}", value


def describe(findings: Sequence[ErrorDetails], prefix: str = "") -> list[str]:
    """Pydantic's findings as lines ``key: law, but got evidence.``"""
    own: list[str] = []
    laws: dict[tuple[str, str], list[str]] = {}  # a union like `int | "auto"` yields a finding for each member
    for finding in findings:
        path = [prefix] * bool(prefix) + [str(part) for part in finding["loc"]]
        if finding["type"] == "value_error":  # raised by our own rules; those over several fields name their key
            message = str(finding["ctx"]["error"])
            own.append(message if re.match(r"^\w+\.\w+: ", message) else f"{'.'.join(path)}: {message}")
        else:
            law = finding["msg"].removeprefix("Input ").replace("should be", "must be")
            key = ".".join(path[:2])
            laws.setdefault((key, repr(finding["input"])), []).append(law[0].lower() + law[1:])
    return [*(f"{key}: {' or '.join(law)}, but got {value}." for (key, value), law in laws.items()), *own]


def parse_anchor_range(text: str) -> tuple[int, ...]:
    """``"8-128"`` as (8, 16, 32, 64, 128), in pixels.

    Raises:
        ValueError: not ``SMALLEST-LARGEST``, not in factors of two, or fewer than the five sizes that five levels need.
    """
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if not match:
        raise ValueError(f"must be 'auto' or SMALLEST-LARGEST like '8-128', but got '{text}'.")
    size, largest = int(match[1]), int(match[2])
    sizes = []
    while 0 < size <= largest:
        sizes.append(size)
        size *= 2
    if not sizes or sizes[-1] != largest or len(sizes) < 5:
        raise ValueError(
            f"SMALLEST must double at least four times to reach LARGEST, but got '{text}'. '8-128' is 8,16,32,64,128."
        )
    return tuple(sizes)
