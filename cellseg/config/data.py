"""Where the images are, how they are read, split and brought to the network's scale."""

import re
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cellseg.config.base import Part, Pixels, Seed

GROUP_FILES = (".csv", ".json", ".yaml", ".yml")
"""Suffixes of the files that ``data.groups`` may name."""


class DataConfig(Part):
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
    resize: Literal["aspect", "square"] = "aspect"
    """``aspect`` scales both sides alike; ``square`` distorts the image to ``shorter_side`` x ``shorter_side``."""
    shorter_side: Pixels | None = None
    """Images are scaled to this shorter side, in pixels. None: native size."""
    longer_side: Pixels = 1333
    """No image is larger than this on its longer side after scaling, in pixels; it is scaled down to fit. Not for
    ``square``."""
    train_scale_min: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Multi-scale training: a training image is scaled by one more factor, drawn between this and 1 at each visit.
    Validation and prediction use 1."""
    crop: Pixels | None = None
    """Training sees random square crops of this many pixels of the scaled image. None: whole images."""
    num_folds: Annotated[int, Field(ge=2)] = 5
    """The training images are split, stratified by class, into this many folds of equal size."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that validates; the others train."""
    split_seed: Seed = 0
    """Seed of the split. Trials that are to be compared must share it."""
    groups: str | None = None
    """Images of one group, such as a patient or a slide, share a fold, so that near copies never sit on both sides.
    Either a file that names the group of each image, relative to ``root`` (``.csv``: lines of image and group;
    ``.json``, ``.yaml``: a mapping), or a regular expression with one group, searched in an image's name, such as
    ``^([^_]+)_``. None: each image may fall into any fold."""
    train_on: Literal["folds", "all"] = "folds"
    """``all`` trains on the validation fold as well: for a last training with all images. Validation figures are
    then those of images the model has seen."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.fold >= self.num_folds:
            raise ValueError(
                f"data.fold: fold < num_folds must hold, but got fold={self.fold}, "
                f"num_folds={self.num_folds}. Folds count from 0."
            )
        if self.groups is not None and not is_group_file(self.groups) and (problem := _pattern_problem(self.groups)):
            raise ValueError(problem)
        if self.resize == "square":
            if self.shorter_side is None:
                raise ValueError(
                    "data.resize: square needs a side, but got shorter_side=None. Set data.shorter_side, or use aspect."
                )
        elif self.shorter_side is not None and self.shorter_side > self.longer_side:
            raise ValueError(
                f"data.shorter_side: shorter_side <= longer_side must hold, but got "
                f"shorter_side={self.shorter_side}, longer_side={self.longer_side}. Swap them?"
            )
        return self


def is_group_file(groups: str) -> bool:
    """Whether ``data.groups`` names a file, rather than being a pattern."""
    return PurePath(groups).suffix.lower() in GROUP_FILES


def _pattern_problem(pattern: str) -> str | None:
    law = f"data.groups: must be a file ({', '.join(GROUP_FILES)}) or a regular expression with one group"
    try:
        count = re.compile(pattern).groups
    except re.error as error:
        return f"{law}, but got '{pattern}' ({error}). Example: '^([^_]+)_'."
    return None if count == 1 else f"{law}, but got '{pattern}' with {count} groups. Example: '^([^_]+)_'."
