"""What is random about a visit to a training image, as far as its size: known before any pixel is read."""

from dataclasses import dataclass

import numpy as np

from cellseg.config import TrialConfig
from cellseg.data.augment import turns_sides
from cellseg.data.resize import multiply_size, scaled_size


@dataclass(frozen=True, slots=True)
class Visit:
    """How a training image is seen in one epoch."""

    scaled: tuple[int, int]
    """(height, width) in pixels that the whole image is scaled to."""
    seed: int
    """Seed of the crop's place and of the augmentation."""
    shape: tuple[int, int]
    """(height, width) in pixels that the network sees: the crop, or the whole image after it was turned."""


def plan_visit(config: TrialConfig, epoch: int, index: int, size: tuple[int, int]) -> Visit:
    """The visit of ``epoch`` to sample ``index``, whose image has ``size`` (height, width).

    It follows from these and the run's seed alone, whichever process asks.
    """
    rng = np.random.default_rng([config.train.seed, epoch, index])
    scaled = scaled_size(*size, config.data)
    if config.data.train_scale_min < 1:
        scaled = multiply_size(scaled, rng.uniform(config.data.train_scale_min, 1))
    seed = int(rng.integers(2**31))
    if config.data.crop is not None:
        return Visit(scaled, seed, (config.data.crop, config.data.crop))
    return Visit(scaled, seed, scaled[::-1] if turns_sides(config.augment, seed) else scaled)
