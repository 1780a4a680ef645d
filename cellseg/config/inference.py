"""From network outputs to detections."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from cellseg.config.base import Fraction, Part, Positive, parse_numbers


class InferenceConfig(Part):
    """From network outputs to detections."""

    score_threshold: Fraction = 0.05
    """Detections below this score are dropped. For ranking keep it low: a higher one never raises AP."""
    nms: Literal["hard", "soft"] = "hard"
    """Of overlapping boxes of a class, ``hard`` drops the lower-scored, ``soft`` lowers its score by
    exp(-IoU^2 / ``soft_nms_sigma``) (Bodla et al. 2017, Gaussian)."""
    nms_threshold: Fraction = 0.5
    """hard: boxes that overlap by more than this IoU exclude each other."""
    soft_nms_sigma: Positive = 0.5
    """soft: the smaller, the harder."""
    mask_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A pixel belongs to a cell where the mask's probability is at least this."""
    scales: str = "1"
    """Multi-scale testing: the image is predicted at each of these factors of its size, rising, and the detections are
    merged by ``nms``."""

    @field_validator("scales")
    @classmethod
    def _factors(cls, value: str) -> str:
        parse_numbers(value, "factors")
        return value
