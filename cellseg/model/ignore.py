"""Ignored regions: remains of cells that a crop cuts away almost completely are neither cell nor background.

Shape suffixes: A anchors or regions, J ignored boxes, 4 = x1, y1, x2, y2 in pixels.
"""

import torch
from torch import Tensor

COVERED = 0.3
"""Least share of an anchor or region under an ignored box that keeps it from being background. An IoU is never larger
than this share, so an overlap with an IoU of 0.3 is covered too. The value is low on purpose: background is abundant,
so a missing example does no harm, while one that shows a cell does."""

PAIRS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 23}
"""Anchors times ignored boxes compared at a time, by type of device; a pair takes about 16 bytes."""

NOTHING = -1
"""The label that samplers skip."""


@torch.no_grad()
def without_ignored(labels_A: Tensor, boxes_A4: Tensor, ignored_J4: Tensor | None) -> Tensor:
    """Return ``labels_A`` with -1 for the background (0) that lies under an ignored box; cells stay.

    Never waits for the device.

    Args:
        labels_A: any type: 0 background, above 0 a cell, -1 ignored.
        boxes_A4: anchors or regions.
        ignored_J4: boxes as in the ``ignored`` of :func:`cellseg.data.targets.make_target`. None: no box.
    """
    if ignored_J4 is None or not len(ignored_J4) or not len(labels_A):
        return labels_A
    at_once = max(PAIRS_AT_ONCE.get(labels_A.device.type, PAIRS_AT_ONCE["cpu"]) // len(ignored_J4), 1)
    covered_A = torch.cat([_covered_share(chunk_a4, ignored_J4) for chunk_a4 in boxes_A4.float().split(at_once)])
    return labels_A.masked_fill((labels_A == 0) & (covered_A >= COVERED), NOTHING)


def _covered_share(boxes_a4: Tensor, ignored_J4: Tensor) -> Tensor:
    """(a,) largest share of each box that any one ignored box covers; 0 for a box without area."""
    corners_a14 = boxes_a4[:, None]
    width_aJ = torch.minimum(corners_a14[..., 2], ignored_J4[:, 2]) - torch.maximum(
        corners_a14[..., 0], ignored_J4[:, 0]
    )
    height_aJ = torch.minimum(corners_a14[..., 3], ignored_J4[:, 3]) - torch.maximum(
        corners_a14[..., 1], ignored_J4[:, 1]
    )
    shared_a = (width_aJ.clamp_(min=0) * height_aJ.clamp_(min=0)).amax(dim=1)
    area_a = (boxes_a4[:, 2] - boxes_a4[:, 0]) * (boxes_a4[:, 3] - boxes_a4[:, 1])
    return shared_a / area_a.clamp(min=1e-6)
