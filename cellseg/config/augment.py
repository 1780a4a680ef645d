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
        "stain-full",
        "reported-aug",
        "reported-elastic",
    ] = "flips"
    """Named pipeline, see ``PRESETS`` in ``cellseg/data/augment.py``. All but ``none`` and the reported ones flip along
    both axes and rotate by multiples of 90 degrees. ``stain-full`` is ``full`` with stains in place of colours. The
    reported ones are those of ``spaces/reports/augmentation_freezing.yaml``."""
    strength: Fraction = 0.5
    """Width of the preset's random ranges, from 0 (hardly any change) to 1 (cells just stay plausible). Not for
    ``none``, ``flips`` and the reported ones, whose ranges are fixed."""
    min_visible: Fraction = 0.25
    """Least share of a cell's area that a crop or warp must leave for the cell to be a target. Below it, the rest is
    ignored: neither cell nor background. 0: every piece is a target. A cell cut by the image's own edge counts as
    whole."""
