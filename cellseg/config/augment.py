"""Random changes to training images."""

from typing import Literal

from cellseg.config.base import Fraction, Part


class AugmentConfig(Part):
    """Random changes to training images; validation and prediction see none."""

    preset: Literal[
        "none",
        "flips",
        "color",
        "stain",
        "focus",
        "blur",
        "noise",
        "geometric",
        "elastic",
        "grid",
        "full",
        "reported-aug",
        "reported-elastic",
    ] = "flips"
    """Named pipeline, see ``PRESETS`` in ``cellseg/data/augment.py``. All but ``none`` and the reported ones flip along
    both axes and turn by quarters. The reported ones are those of ``spaces/reports/augmentation_freezing.yaml``."""
    strength: Fraction = 0.5
    """How far the preset's ranges reach, from 0 (hardly) to 1 (as far as cells stay cells). Not for ``none``, ``flips``
    and the reported ones, whose ranges are fixed."""
