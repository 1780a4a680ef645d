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
    both axes and turn by quarters. ``stain-full`` is ``full`` with stains in place of colours. The reported ones are
    those of ``spaces/reports/augmentation_freezing.yaml``."""
    strength: Fraction = 0.5
    """How far the preset's ranges reach, from 0 (hardly) to 1 (as far as cells stay cells). Not for ``none``, ``flips``
    and the reported ones, whose ranges are fixed."""
    min_visible: Fraction = 0.25
    """Of a cell that a crop or a warp cuts, at least this share of the area must be left for it to be taught. Less is
    neither cell nor background: nothing is learnt from it. 0: every piece counts. A cell that the image itself cuts is
    whole."""
