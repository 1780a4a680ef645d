"""The data set: location, reading, split, and scaling to the network's input."""

import re
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cellseg.config.base import Part, Pixels, Seed
from cellseg.errors import Problem, RuleError

GROUP_FILES = (".csv", ".json", ".yaml", ".yml")
"""Suffixes of the files that ``data.groups`` may name."""

Layout = Literal[
    "auto", "release", "coco", "cellpose", "stardist", "labels", "labelme", "geojson", "imagej", "yolo", "cvat", "via"
]
"""Ways in which images and annotations lie in a folder. From ``cellpose`` on: see :mod:`cellseg.data.importing`."""


class DataConfig(Part):
    """The data set: location, reading, split, and scaling to the network's input."""

    root: str | None = None
    """Folder of the data set. The option ``--data`` of the commands overrides it."""
    layout: Layout = "auto"
    """``release``: ``train/<id>/image.tif`` and ``classK.tif`` beside it; ``coco``: an annotation JSON; the others:
    files as other tools write them (docs/data.md). ``auto`` finds out."""
    annotations: str | None = None
    """COCO layout: the annotation file, relative to ``root``. None: the only COCO JSON in ``root`` or below, or those
    of the splits ``train`` and ``valid``."""
    instances: Literal["ids", "components"] = "ids"
    """Release layout: a class map has one value per cell, or is a binary mask whose connected components are cells."""
    channels: str | None = None
    """Which channels of a microscopy image become red, green and blue, numbered from 1 as in Fiji, 0 for none:
    ``3,2,1``, ``0,2,1``. A single number gives a grey image. Pixels beyond 8 bits are then stretched channel by
    channel. None: images are grey or RGB."""
    projection: Literal["max", "mean", "middle"] | None = None
    """How a z-stack becomes flat: the largest or mean value along z, or the plane in the middle. None: images are
    flat."""
    color: Literal["rgb", "grey"] = "rgb"
    """``grey`` gives the network the image's luminance in all three channels, in training and prediction alike."""
    resize: Literal["aspect", "square"] = "aspect"
    """``aspect`` scales both sides alike; ``square`` distorts the image to ``shorter_side`` x ``shorter_side``."""
    shorter_side: Pixels | None = None
    """Images are scaled to this shorter side, in pixels. None: native size."""
    longer_side: Pixels = 1333
    """Largest longer side after scaling, in pixels; larger images are scaled down to fit. Not for ``square``."""
    train_scale_min: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Multi-scale training: each training image is also scaled by a factor drawn between this and 1 at each visit.
    Validation and prediction use 1."""
    crop: Pixels | None = None
    """Side of the random square crops that training takes from the scaled image, in pixels. None: whole images."""
    validation: Literal["folds", "given"] = "folds"
    """``given`` validates on the images of the data's own split ``valid``, and trains on those of ``train``; ``folds``
    joins the two and splits them anew."""
    num_folds: Annotated[int, Field(ge=2)] = 5
    """Number of folds of equal size into which the training images are split, stratified by class."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Index of the fold used for validation, from 0; the others train."""
    split_seed: Seed = 0
    """Seed of the split. Trials are comparable only if they share it."""
    groups: str | None = None
    """Images of one group, such as a patient or a slide, share a fold, so that near copies are never on both sides.
    Either a file that names the group of each image, relative to ``root`` (``.csv``: lines of image and group;
    ``.json``, ``.yaml``: a mapping), or a regular expression with one group, searched in an image's name, such as
    ``^([^_]+)_``. None: each image may fall into any fold."""
    train_on: Literal["folds", "all", "unvalidated"] = "folds"
    """``all`` trains on the validation fold as well; validation figures then come from images the model has seen.
    ``unvalidated`` trains on all images without any validation: for a final training. There is no metric then, and the
    weights of the last epoch are kept. Not for a search."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        problems = []
        if self.channels is not None and not _valid_channels(self.channels):
            problems.append(
                Problem(
                    "data.channels",
                    "must be one to three channel numbers from 1, or 0 for none, separated by commas",
                    f"'{self.channels}'",
                    "Examples: '2', '3,2,1', '0,2,1'.",
                )
            )
        if self.fold >= self.num_folds:
            problems.append(
                Problem(
                    "data.fold",
                    "fold < num_folds must hold",
                    f"fold={self.fold}, num_folds={self.num_folds}",
                    "Folds are numbered from 0.",
                )
            )
        if self.groups is not None and not is_group_file(self.groups) and (found := _pattern_problem(self.groups)):
            problems.append(found)
        if self.resize == "square" and self.shorter_side is None:
            problems.append(
                Problem(
                    "data.resize",
                    "square needs a side",
                    "shorter_side=None",
                    "Set data.shorter_side, or use aspect.",
                )
            )
        if self.resize == "aspect" and self.shorter_side is not None and self.shorter_side > self.longer_side:
            problems.append(
                Problem(
                    "data.shorter_side",
                    "shorter_side <= longer_side must hold",
                    f"shorter_side={self.shorter_side}, longer_side={self.longer_side}",
                    "Swap them?",
                )
            )
        if problems:
            raise RuleError(*problems)
        return self


def is_group_file(groups: str) -> bool:
    """Whether ``data.groups`` names a file, rather than being a pattern."""
    return PurePath(groups).suffix.lower() in GROUP_FILES


def parse_channels(channels: str) -> tuple[int, ...]:
    """Parse a valid ``data.channels`` into numbers from 1, with 0 for none."""
    return tuple(int(part) for part in channels.split(","))


def _valid_channels(channels: str) -> bool:
    parts = [part.strip() for part in channels.split(",")]
    return len(parts) <= 3 and all(part.isascii() and part.isdigit() for part in parts) and any(map(int, parts))


def _pattern_problem(pattern: str) -> Problem | None:
    law = f"must be a file ({', '.join(GROUP_FILES)}) or a regular expression with one group"
    example = "Example: '^([^_]+)_'."
    try:
        count = re.compile(pattern).groups
    except re.error as error:
        return Problem("data.groups", law, f"'{pattern}' ({error})", example)
    return None if count == 1 else Problem("data.groups", law, f"'{pattern}' with {count} groups", example)
