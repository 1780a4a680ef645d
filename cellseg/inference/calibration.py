"""Calibration: post-processing settings chosen on stored validation predictions, without running the network again.

A choice among dozens of settings on a few dozen images is partly luck. So it is cross-validated over images: the
settings for each part of the images are chosen on the others, and what this gains over the model's own settings is the
gain that new images can expect. Only a positive one is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from cellseg.config import TrialConfig
from cellseg.data.detections import Detections
from cellseg.evaluate import ImageMatches, match_image, summarize
from cellseg.inference.postprocess import repeat

NUM_PARTS = 5
"""Parts of the cross-validation."""
SEED = 0
"""Seed of the parts: a choice is the same each time it is made."""
INERTIA = 0.002
"""A setting is changed only if that gains more than this where it is chosen."""

LEVERS: tuple[tuple[dict[str, Any], ...], ...] = (
    (
        *({"inference.nms": "hard", "inference.nms_threshold": threshold} for threshold in (0.3, 0.4, 0.5, 0.6, 0.7)),
        *({"inference.nms": "soft", "inference.soft_nms_sigma": sigma} for sigma in (0.1, 0.3, 0.5)),
    ),
    tuple({"inference.mask_threshold": threshold} for threshold in (0.35, 0.4, 0.45, 0.5, 0.55, 0.6)),
    tuple({"inference.mask_quality": power} for power in (0.0, 1.0, 2.0)),
    tuple({"inference.min_area": area} for area in (0, 10, 20, 40)),
)
"""The settings that are tried, one lever after the other."""

Option = TypeVar("Option")


class Scorer:
    """The metric of a model's predictions under any settings, for any choice of images. Comparisons are kept."""

    def __init__(self, truths: Sequence[Detections], class_names: Sequence[str], metric: str):
        self.truths = truths
        self.class_names = class_names
        self.metric = metric

    def compare(self, predictions: Sequence[Detections]) -> list[ImageMatches]:
        """Compare each image with its truth."""
        pairs = zip(predictions, self.truths, strict=True)
        return [match_image(prediction, truth, len(self.class_names)) for prediction, truth in pairs]

    def value(self, matches: Sequence[ImageMatches]) -> float:
        """Return the metric of images that were compared."""
        return summarize(matches, self.class_names)[self.metric]


@dataclass(frozen=True)
class Choice(Generic[Option]):
    """What was chosen, and what that is worth."""

    option: Option
    """The one to use: the first, if no other gains."""
    before: float
    """The metric on all images with the first option."""
    gain: float
    """Cross-validated gain of choosing, also where it is negative and nothing was chosen."""


def cross_validate(
    choose: Callable[[Sequence[int]], Option],
    compared: Callable[[Option], Sequence[ImageMatches]],
    default: Option,
    scorer: Scorer,
) -> Choice[Option]:
    """Choose an option, if that gains anything on images that had no part in the choice.

    Args:
        choose: returns the best option for the images at these positions.
        compared: the comparisons of all images under an option.
        default: the option if none gains.
    """
    of_default = compared(default)
    before = scorer.value(of_default)
    num_images = len(of_default)
    part_N = np.random.default_rng(SEED).permutation(num_images) % NUM_PARTS
    held_out: list[ImageMatches] = list(of_default)
    if num_images >= 2 * NUM_PARTS:
        for part in range(NUM_PARTS):
            option = choose(np.flatnonzero(part_N != part).tolist())
            if option != default:
                matches = compared(option)
                for index in np.flatnonzero(part_N == part).tolist():
                    held_out[index] = matches[index]
    gain = scorer.value(held_out) - before
    return Choice(choose(range(num_images)) if gain > 0 else default, before, gain)


def calibrate(loose: Sequence[Detections], config: TrialConfig, scorer: Scorer) -> Choice[TrialConfig]:
    """Choose post-processing settings for a model.

    Args:
        loose: its detections in the validation images, found by :func:`cellseg.inference.postprocess.loosened`.
        config: that of the model.

    Returns:
        The config with the settings that were chosen.
    """
    known: dict[str, list[ImageMatches]] = {}

    def compared(option: TrialConfig) -> list[ImageMatches]:
        key = str(option.inference)
        if key not in known:
            known[key] = scorer.compare(repeated(loose, option))
        return known[key]

    def choose(indices: Sequence[int]) -> TrialConfig:
        best, best_value = config, scorer.value([compared(config)[index] for index in indices])
        for lever in LEVERS:
            start = best
            for settings in lever:
                option = start.replace(**{key.replace(".", "__"): value for key, value in settings.items()})
                value = scorer.value([compared(option)[index] for index in indices])
                if value > best_value + INERTIA:
                    best, best_value = option, value
        return best

    return cross_validate(choose, compared, config, scorer)


def repeated(loose: Sequence[Detections], config: TrialConfig) -> list[Detections]:
    """Return what the model would have found in each image with the settings of ``config``."""
    limit = config.model.detections_per_image
    assert isinstance(limit, int), "resolve_auto comes first"
    return [repeat(found, config.inference, limit) for found in loose]


def choose_weights(
    predictions: Sequence[Sequence[Detections]],
    fuse: Callable[[Sequence[float]], Sequence[Detections]],
    scorer: Scorer,
) -> Choice[tuple[float, ...]]:
    """Choose the weights of an ensemble's members; 0 leaves one out.

    Members join in their order, each with full, half or no weight, whichever is best.

    Args:
        predictions: those of each member, in the validation images; the first member is the one to beat.
        fuse: the fused predictions under some weights of all members.
    """
    known: dict[tuple[float, ...], list[ImageMatches]] = {}

    def compared(weights: tuple[float, ...]) -> list[ImageMatches]:
        if weights not in known:
            known[weights] = scorer.compare(fuse(weights))
        return known[weights]

    alone = (1.0, *(0.0 for _ in predictions[1:]))

    def choose(indices: Sequence[int]) -> tuple[float, ...]:
        best, best_value = alone, scorer.value([compared(alone)[index] for index in indices])
        for member in range(1, len(predictions)):
            start = best
            for weight in (1.0, 0.5):
                option = (*start[:member], weight, *start[member + 1 :])
                value = scorer.value([compared(option)[index] for index in indices])
                if value > best_value + INERTIA:
                    best, best_value = option, value
        return best

    return cross_validate(choose, compared, alone, scorer)


@dataclass(frozen=True)
class OperatingPoint:
    """Score thresholds for counting and outlining cells, where every detection counts and not only its rank."""

    thresholds: tuple[float, ...]
    """The score of each class from which on detections are taken; 1 where no detection is right."""
    f1: float
    """F1 at IoU 0.5, mean over the classes that have cells; of each part of the images with thresholds chosen on the
    others."""


def operating_point(matches: Sequence[ImageMatches], num_classes: int) -> OperatingPoint:
    """Choose the score threshold of each class that gives the best F1.

    Detections are matched in the order of their scores, so leaving out the last ones leaves the other matches as they
    are: one comparison serves all thresholds.
    """
    part_N = np.random.default_rng(SEED).permutation(len(matches)) % NUM_PARTS
    thresholds, f1s = [], []
    for k in range(num_classes):
        of_class = [image[k] for image in matches]
        thresholds.append(_best_threshold(of_class))
        counts = np.zeros(3)
        for part in range(NUM_PARTS):
            threshold = _best_threshold([image for image, p in zip(of_class, part_N, strict=True) if p != part])
            for image, p in zip(of_class, part_N, strict=True):
                if p == part and image is not None:
                    taken_D = image["dtScores"] >= threshold
                    counts += image["dtMatches"][0][taken_D].sum(), taken_D.sum(), len(image["gtIgnore"])
        if counts[2]:
            f1s.append(2 * counts[0] / (counts[1] + counts[2]))
    return OperatingPoint(tuple(thresholds), float(np.mean(f1s)) if f1s else 0.0)


def _best_threshold(images: Sequence[dict | None]) -> float:
    """Return the threshold of the best F1 of one class at IoU 0.5."""
    there = [image for image in images if image is not None]
    scores_D = np.concatenate([np.zeros(0), *(image["dtScores"] for image in there)])
    right_D = np.concatenate([np.zeros(0, bool), *(image["dtMatches"][0] for image in there)])
    if not right_D.any():
        return 1.0
    order = np.argsort(-scores_D, kind="stable")
    taken_D = np.arange(1, len(order) + 1)
    f1_D = 2 * np.cumsum(right_D[order]) / (taken_D + sum(len(image["gtIgnore"]) for image in there))
    return float(scores_D[order][f1_D.argmax()])
