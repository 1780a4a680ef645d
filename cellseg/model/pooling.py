"""Pooling of regions of interest (RoIs) from the levels of a feature pyramid.

Shape suffixes: R RoIs of all images, C channels, M side of the pooled features, 4 = x1, y1, x2, y2 in pixels of the
network's input.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

CANONICAL_LEVEL, CANONICAL_SIDE = 4, 224
"""A RoI of 224 x 224 px is pooled from the level of stride 16 (Lin et al. 2017)."""
EPSILON = 1e-6
"""torchvision's: a RoI at the limit between two levels belongs to the coarser one."""


class PyramidRoIAlign(MultiScaleRoIAlign):
    """torchvision's pooling from FPN levels, with fixed instead of guessed strides and at most one GPU synchronisation.

    torchvision guesses the strides in the first forward pass, from the image sizes before padding, and keeps them. An
    image 33 px high is padded to 64: it would halve the strides for all later images, and results would depend on
    which images came first, also after a resume.
    """

    def __init__(self, levels: list[str], output_size: int):
        """``levels`` are names of FPN levels, ``"0"`` (stride 4) to ``"3"`` (stride 32), finest first."""
        super().__init__(levels, output_size, sampling_ratio=2)
        exponents = [2 + int(level) for level in levels]
        self.scales = [2.0**-exponent for exponent in exponents]
        self.map_levels = initLevelMapper(exponents[0], exponents[-1])

    def levels_of(self, boxes_R4: Tensor) -> Tensor:
        """(R,) int64: index of the level that each RoI is pooled from."""
        side_R = (boxes_R4[:, 2:] - boxes_R4[:, :2]).prod(dim=1).sqrt()
        level_R = torch.floor(CANONICAL_LEVEL + torch.log2(side_R / CANONICAL_SIDE) + EPSILON)
        finest, coarsest = (int(-np.log2(scale)) for scale in (self.scales[0], self.scales[-1]))
        return level_R.nan_to_num(finest).clamp(finest, coarsest).to(torch.int64) - finest

    def forward(
        self,
        x: dict[str, Tensor],
        boxes: list[Tensor],
        image_shapes: list[tuple[int, int]],
        levels_R: np.ndarray | None = None,
    ) -> Tensor:
        """(R, C, M, M), in the type of the feature maps.

        Args:
            x: feature maps by name; contiguous float32 is pooled as it is, others are copied.
            boxes: (r, 4) float32 for each image.
            image_shapes: not used.
            levels_R: result of :meth:`levels_of` for the boxes of all images, if the host already has it.
        """
        maps = [x[name] for name in self.featmap_names]
        image_R1 = torch.cat([torch.full_like(b[:, :1], index) for index, b in enumerate(boxes)])
        boxes_R4 = torch.cat(boxes)
        level_R = self.levels_of(boxes_R4)
        counts = np.bincount(level_R.cpu().numpy() if levels_R is None else levels_R, minlength=len(maps))
        rois_R5 = torch.cat([image_R1, boxes_R4], dim=1)
        if len(rois_R5) and counts.max() == len(rois_R5):  # most cells belong to the finest level
            index = int(counts.argmax())
            return roi_align(maps[index], rois_R5, self.output_size, self.scales[index], self.sampling_ratio)
        order_R = level_R.argsort(stable=True)
        rois = rois_R5[order_R].split(counts.tolist())
        pooled = torch.cat(
            [
                roi_align(level_BCHW, rois_r5, self.output_size, scale, self.sampling_ratio)
                for level_BCHW, rois_r5, scale in zip(maps, rois, self.scales, strict=True)
            ]
        )
        return torch.empty_like(pooled).index_copy_(0, order_R, pooled)
