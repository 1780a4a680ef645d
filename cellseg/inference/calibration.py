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
