"""Learning-rate schedules: pure functions of the step and of the run's figures so far.

A resumed run therefore needs no schedule state: only the values of its past epochs, which ``plateau`` looks back on.
"""

import math
from collections.abc import Sequence

from cellseg.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int, epochs: int, decays: int = 0) -> float:
    """Return the rate of an optimiser step in a run of ``epochs`` whole epochs.

    - constant: ``lr``.
    - step: ``lr``, times ``gamma`` after every ``step_epochs``.
    - cosine: half a cosine from ``lr`` to almost 0.
    - warm-restarts: the same over ``restart_epochs``, and then again, each time ``restart_multiplier`` times as long
      (SGDR, Loshchilov & Hutter 2017). What follows the last whole cosine is cut short by the end of the run.
    - warmup-cosine: a line from ``lr / warmup_steps`` to ``lr`` and then half a cosine to almost 0.
    - plateau: ``lr * warmup_factor`` for ``warmup_epochs``, then ``lr * plateau_factor ** decays``.

    Args:
        step: optimiser steps done before this one, in all epochs.
        steps_per_epoch: optimiser steps, not batches.
        decays: :func:`num_decays` of the epochs before this one; only plateau looks at it.
    """
    total = steps_per_epoch * epochs
    match config.schedule:
        case "constant":
            return config.lr
        case "step":
            return config.lr * config.gamma ** (step // steps_per_epoch // config.step_epochs)
        case "cosine":
            return _cosine(config.lr, step, total)
        case "warm-restarts":
            length = steps_per_epoch * config.restart_epochs
            while step >= length:
                step -= length
                length *= config.restart_multiplier
            return _cosine(config.lr, step, length)
        case "warmup-cosine":
            warmup = round(config.warmup_fraction * total)
            if step < warmup:
                return config.lr * (step + 1) / warmup
            return _cosine(config.lr, step - warmup, total - warmup)
        case "plateau":
            if step // steps_per_epoch < config.warmup_epochs:
                return config.lr * config.warmup_factor
            return config.lr * config.plateau_factor**decays


def num_decays(gains: Sequence[float], warmup_epochs: int, patience: int) -> int:
    """Count how often plateau has lowered the rate by the end of the last of these epochs.

    It is lowered at the end of the ``patience``-th epoch in a row without a new best; counting then restarts, and the
    best stays. A new best is larger than all before it, by however little. Warm-up epochs are left out altogether: they
    neither count nor set the best. This is torch's ``ReduceLROnPlateau`` with ``threshold=0``
    and a patience less by one, which starts after the warm-up.

    Args:
        gains: of each epoch so far, from the first, the watched value, sign-adjusted: larger is better.
    """
    best = -math.inf
    decays = without_gain = 0
    for gain in gains[warmup_epochs:]:
        without_gain = 0 if gain > best else without_gain + 1
        best = max(best, gain)
        if without_gain == patience:
            decays += 1
            without_gain = 0
    return decays


def _cosine(peak: float, step: int, steps: int) -> float:
    """Return half a cosine from ``peak`` at step 0 to 0 at step ``steps``."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
