"""Statistics of a data set: enough to choose anchors, scale and detection limits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from cellseg.config import DataConfig
from cellseg.data.coverage import COVERAGE_IOUS, anchor_coverage, neighbours_of
from cellseg.data.resize import scaled_size
from cellseg.names import counted

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
COCO_DETECTIONS = 100
"""Detections per image that COCO's metric and torchvision keep by default."""


@dataclass(frozen=True, kw_only=True)
class DataStatistics:
    """Counts over the images of a data set. Quantiles are those of ``QUANTILES``, None where there are no values."""

    class_names: tuple[str, ...]
    images: int
    empty_images: int
    """Images without a cell."""
    heights: tuple[float, ...] | None
    """Quantiles over images, px."""
    widths: tuple[float, ...] | None
    """Quantiles over images, px."""
    cells_per_class: tuple[int, ...]
    images_per_class: tuple[int, ...]
    """Images with at least one cell of the class."""
    cells_per_image: tuple[float, ...] | None
    """Quantiles over images."""
    box_sides: tuple[float, ...] | None
    """Quantiles over cells of sqrt(box width * box height), px of the unscaled image."""
    anchors: str | None
    """Anchor range that fits the boxes at the default scale, as ``model.anchors`` takes it. None without cells."""
    coverage: Mapping[str, tuple[float, ...]]
    """Anchor range -> share of cells that its anchors cover at the default scale, for each of ``COVERAGE_IOUS``:
    ``anchors`` first, then its neighbours. Empty without cells."""

    @classmethod
    def collect(
        cls,
        boxes: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]] | np.ndarray,
        class_names: Sequence[str],
    ) -> Self:
        """Count over images.

        Args:
            boxes: for each image the (N, 4) boxes x1, y1, x2, y2 with exclusive right and bottom edge, px.
            labels: for each image the (N,) classes, from 1.
            sizes: for each image (height, width) in px.
        """

        counts_IK = count_labels(labels, len(class_names))
        sizes_I2 = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        default = DataConfig()
        scaled_I2 = np.array([scaled_size(h, w, default) for h, w in sizes_I2.tolist()]).reshape(-1, 2)
        scale_I2 = scaled_I2 / sizes_I2
        scaled_boxes = [box_N4 * np.tile(yx_2[::-1], 2) for box_N4, yx_2 in zip(boxes, scale_I2, strict=True)]
        anchors = anchors_for(_sides(scaled_boxes)) if any(map(len, boxes)) else None
        ranges = (anchors, *neighbours_of(anchors)) if anchors else ()
        return cls(
            class_names=tuple(class_names),
            images=len(labels),
            empty_images=int(np.count_nonzero(counts_IK.sum(axis=1) == 0)),
            heights=_quantiles(sizes_I2[:, 0]),
            widths=_quantiles(sizes_I2[:, 1]),
            cells_per_class=tuple(counts_IK.sum(axis=0).tolist()),
            images_per_class=tuple(np.count_nonzero(counts_IK, axis=0).tolist()),
            cells_per_image=_quantiles(counts_IK.sum(axis=1)),
            box_sides=_quantiles(_sides(boxes)),
            anchors=anchors,
            coverage={name: anchor_coverage(scaled_boxes, scaled_I2, name) for name in ranges},
        )

    @property
    def cells(self) -> int:
        """Cells of all classes."""
        return sum(self.cells_per_class)

    @property
    def most_cells(self) -> int:
        """Cells of the densest image."""
        return int(self.cells_per_image[-1]) if self.cells_per_image else 0

    def describe(self) -> list[str]:
        """Write the counts as lines for people, followed by suggestions for the configuration."""
        lines = [f"images           {self.images}, {self.empty_images} of them without cells"]
        if self.heights and self.widths:
            lines += [f"height           {_spread(self.heights)} px", f"width            {_spread(self.widths)} px"]
        lines.append(f"cells            {self.cells}")
        lines += [
            f"  {name:<14} {cells} in {images} {'image' if images == 1 else 'images'}"
            for name, cells, images in zip(self.class_names, self.cells_per_class, self.images_per_class, strict=True)
        ]
        if self.cells_per_image:
            lines.append(f"cells per image  {_spread(self.cells_per_image)}")
        if self.box_sides:
            lines.append(f"cell size        {_spread(self.box_sides)} px (square root of box width x height)")
        return [*lines, *self._coverage_lines(), *self._suggestions()]

    def _coverage_lines(self) -> list[str]:
        if not self.anchors:
            return []
        (own, *_), (half, most) = self.coverage.values(), COVERAGE_IOUS
        others = [f"{name} {_percent(shares)}" for name, shares in self.coverage.items() if name != self.anchors]
        return [
            f"anchor coverage  {self.anchors}: {own[0]:.0%} of the cells have an anchor of IoU >= {half}, "
            f"{own[1]:.0%} one of IoU >= {most}",
            f"                 for comparison: {', '.join(others)}",
        ]

    def _suggestions(self) -> list[str]:
        lines = []
        if self.most_cells > COCO_DETECTIONS:
            lines.append(
                f"suggestion: one image holds {counted(self.most_cells, 'cell')}. "
                f"Keep model.detections_per_image at 'auto' "
                f"or well above that; the usual {COCO_DETECTIONS} would lose cells."
            )
        if self.anchors and self.box_sides:
            lines.append(
                f"suggestion: model.anchors '{self.anchors}' fits these cells at the default scale, which is what "
                "'auto' takes there."
            )
        absent = [name for name, count in zip(self.class_names, self.cells_per_class, strict=True) if not count]
        if absent:
            lines.append(f"suggestion: there is no cell of {', '.join(absent)}; nothing can be learnt about it.")
        return lines


def count_labels(labels: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Count the cells of class ``k + 1`` in each image: (images, classes) int64."""
    counts_IK = np.zeros((len(labels), num_classes), np.int64)
    for counts_K, labels_N in zip(counts_IK, labels, strict=True):
        counts_K[:] = np.bincount(labels_N, minlength=num_classes + 1)[1:]
    return counts_IK


def _sides(boxes: Sequence[np.ndarray]) -> np.ndarray:
    """Compute sqrt(width * height) of all boxes, (cells,)."""
    boxes_N4 = np.concatenate([np.zeros((0, 4)), *boxes])
    return np.sqrt((boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1))


def _percent(shares: Sequence[float]) -> str:
    return " and ".join(f"{share:.0%}" for share in shares)


def _quantiles(values: np.ndarray) -> tuple[float, ...] | None:
    return tuple(np.quantile(values, QUANTILES).tolist()) if len(values) else None


def _spread(quantiles: tuple[float, ...]) -> str:
    low, *_, high = quantiles
    if low == high:
        return f"{low:.0f}"
    return f"{low:.0f} to {high:.0f}, median {quantiles[2]:.0f}, nine in ten {quantiles[1]:.0f} to {quantiles[3]:.0f}"


def anchors_for(sides: np.ndarray) -> str:
    """Choose the anchor range whose smallest size is the power of two nearest to the small cells (10th percentile).

    Five sizes in factors of two then reach 16 times as far, one for each FPN level. Between 2-32 and 32-512.
    """
    small = float(np.percentile(sides, 10)) if len(sides) else 32.0
    smallest = 2 ** min(5, max(1, round(math.log2(max(small, 1.0)))))
    return f"{smallest}-{smallest * 16}"
