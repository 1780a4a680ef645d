"""Post-processing: from network outputs to detections."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cellseg.config.base import Fraction, Part, Pixels, Positive, parse_numbers
from cellseg.errors import Problem, RuleError


class InferenceConfig(Part):
    """Post-processing: from network outputs to detections."""

    score_threshold: Fraction = 0.05
    """Detections below this score are dropped. For ranking keep it low: a higher one never raises AP."""
    nms: Literal["hard", "soft"] = "hard"
    """Of overlapping boxes of a class, ``hard`` drops the lower-scored, ``soft`` lowers its score by
    exp(-IoU^2 / ``soft_nms_sigma``) (Bodla et al. 2017, Gaussian)."""
    nms_threshold: Fraction = 0.5
    """hard: of two boxes that overlap by more than this IoU, only the better one stays."""
    soft_nms_sigma: Positive = 0.5
    """soft: smaller values lower the scores of overlapping boxes more."""
    mask_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A pixel belongs to a cell if the mask's probability there is at least this."""
    mask_pasting: Literal["model", "exact"] = "exact"
    """``exact`` puts masks where their targets in training were read. ``model``: as ``model.mask_alignment`` says, so
    with ``torchvision`` half a pixel beside, in boxes of whole pixels."""
    mask_quality: Annotated[float, Field(ge=0, le=4)] = 0.0
    """A score is multiplied by this power of its mask's quality, the mean probability of the mask's pixels: a sure mask
    ranks higher. 0: scores are those of the box head."""
    min_area: Annotated[int, Field(ge=0)] = 0
    """Cells with fewer pixels than this are dropped, in pixels of the image."""
    scales: str = "1"
    """Multi-scale testing: rising, comma-separated factors. The image is predicted at each of these scales and the
    detections are fused: masks that overlap by more than half are one cell, whose score and mask are averages."""
    turns: Literal["none", "flips", "rot90", "flips,rot90"] = "none"
    """Test-time augmentation: the image is also predicted mirrored along both axes (``flips``), rotated by quarters
    (``rot90``), or in all eight positions, and the detections are fused as those of several scales."""

    tile: Pixels | None = None
    """Side of a tile, in pixels of the network's input. A larger image is predicted in overlapping square tiles, and
    each cell is reported once. ``model.detections_per_image`` then applies to each tile. None: images are predicted
    whole."""
    tile_overlap: Pixels = 64
    """Minimum overlap of neighbouring tiles, in pixels. Cells smaller than this are whole in some tile; larger ones
    are joined from their parts."""

    @field_validator("scales")
    @classmethod
    def _factors(cls, value: str) -> str:
        parse_numbers(value, "factors")
        return value

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.tile is not None and self.tile_overlap >= self.tile:
            problem = Problem(
                "inference.tile_overlap",
                "tile_overlap < tile must hold",
                f"tile_overlap={self.tile_overlap}, tile={self.tile}",
                "A quarter of the tile, or the largest cell, is enough.",
            )
            raise RuleError(problem)
        return self
