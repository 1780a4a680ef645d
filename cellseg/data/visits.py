"""Random scale and size of each visit to a training image, known before any pixel is read."""

from dataclasses import dataclass

import numpy as np

from cellseg.config import TrialConfig
from cellseg.data.augment import turns_sides
from cellseg.data.resize import multiply_size, scaled_size


@dataclass(frozen=True, slots=True)
class Visit:
    """Scale, seed and final size of a training image in one epoch."""

    scaled: tuple[int, int]
    """(height, width) in pixels that the whole image is scaled to."""
    seed: int
    """Seed of the crop's place and of the augmentation."""
    shape: tuple[int, int]
    """(height, width) in pixels that the network sees: the crop, or the whole image after rotation."""


def plan_visit(config: TrialConfig, epoch: int, index: int, size: tuple[int, int]) -> Visit:
    """Plan the visit of ``epoch`` to sample ``index``, whose image has ``size`` (height, width).

    Depends only on these and the run's seed, so all processes agree.
    """
    rng = np.random.default_rng([config.train.seed, epoch, index])
    scaled = scaled_size(*size, config.data)
    if config.data.train_scale_min < 1:
        scaled = multiply_size(scaled, rng.uniform(config.data.train_scale_min, 1))
    seed = int(rng.integers(2**31))
    if config.data.crop is not None:
        return Visit(scaled, seed, (config.data.crop, config.data.crop))
    return Visit(scaled, seed, scaled[::-1] if turns_sides(config.augment, seed) else scaled)
