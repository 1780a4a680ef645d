"""Steps between a model's detections and those that are reported, and their repetition with other settings.

The network suppresses before it predicts masks. :func:`loosened` makes it return what nearly any setting could keep;
:func:`repeat` then does with stored detections what the network would have done, without running it again.

Shape suffixes: N detections, M side of a mask.
"""

from dataclasses import replace

import numpy as np
from pycocotools import mask as coco_mask

from cellseg.config import InferenceConfig, TrialConfig
from cellseg.data.detections import Detections
from cellseg.data.softmask import ONE
from cellseg.inference.fusion import suppressed

LOOSE_NMS = 0.8
"""Of boxes that overlap by more than this IoU, no setting keeps both."""
LOOSE_SCORE = 0.05
"""Detections below this score change no figure in the third digit."""


def at_least(found: Detections, min_area: int) -> Detections:
    """Select the cells with at least ``min_area`` pixels; all for 0."""
    if not min_area:
        return found
    return found.select([index for index, rle in enumerate(found.rles) if coco_mask.area(rle) >= min_area])


def rescored(found: Detections, qualities_N: np.ndarray, power: float) -> Detections:
    """Multiply scores by a power of the masks' qualities, best first."""
    scores_N = (found.scores_N * qualities_N**power).astype(np.float32)
    return replace(found, scores_N=scores_N).select(np.argsort(-scores_N, kind="stable"))


def mask_qualities(masks_NMM: np.ndarray, threshold: float) -> np.ndarray:
    """Compute the mean probability of each mask's pixels, (N,) in [0, 1]; 0 for a mask without pixels."""
    inside_NMM = masks_NMM >= threshold
    counts_N = inside_NMM.sum(axis=(1, 2))
    return (masks_NMM * inside_NMM).sum(axis=(1, 2), dtype=np.float64) / counts_N.clip(min=1)


def loosened(config: TrialConfig) -> TrialConfig:
    """Return ``config`` such that it finds what :func:`repeat` can select from."""
    limit = config.model.detections_per_image
    assert isinstance(limit, int), "resolve_auto comes first"
    return config.replace(
        inference__nms="hard",
        inference__nms_threshold=LOOSE_NMS,
        inference__score_threshold=min(LOOSE_SCORE, config.inference.score_threshold),
        inference__mask_quality=0.0,
        inference__min_area=0,
        model__detections_per_image=2 * limit,
    )


def repeat(found: Detections, inference: InferenceConfig, limit: int) -> Detections:
    """Select from loosely found cells, with soft masks, what ``inference`` and ``limit`` detections would leave."""
    assert found.soft is not None
    found = found.above(inference.score_threshold)
    found = suppressed(found, inference, limit)
    assert found.soft is not None
    rles = tuple(mask.encode(inference.mask_threshold, found.size) for mask in found.soft)
    found = replace(found, rles=rles)
    if inference.mask_quality:
        assert found.soft is not None
        cut = [mask.values_hw[mask.cut(inference.mask_threshold)] for mask in found.soft]
        qualities_N = np.array([values.mean() / ONE if values.size else 0.0 for values in cut])
        found = rescored(found, qualities_N, inference.mask_quality)
    return at_least(found, inference.min_area)
