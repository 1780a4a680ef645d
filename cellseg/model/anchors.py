"""Anchors: the boxes the RPN starts from, and an RPN head that may have more of them on the finest level.

Shape suffixes: A anchors of an image, S shapes of a level's anchors, H, W rows and columns of a level, N cells, 4 = x1,
y1, x2, y2 in pixels of the network's input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead

from cellseg.config import sizes_per_level

GRIDS_KEPT = 16
"""Image sizes whose anchors are cached: consecutive batches mostly have the same size."""


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one FPN level: every shape at every place of a regular grid."""

    first: int
    """Index of the level's first anchor among those of the image."""
    stride: tuple[int, int]
    """Pixels from a row to the next and from a column to the next."""
    x_SW2: Tensor
    """Left and right edges by shape and column, float32."""
    y_SH2: Tensor
    """Upper and lower edges by shape and row, float32."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """S, H, W."""
        return len(self.x_SW2), self.y_SH2.shape[1], self.x_SW2.shape[1]


@dataclass(frozen=True)
class CandidateTable:
    """What is known of the anchors near a cell before its position is: constants of a grid.

    L levels, W places along a window, P nearest places, S shapes, K candidates, C columns; 2 = x, y.
    """

    places: int
    """P: nearest places of a level whose anchors are candidates."""
    window_W: Tensor
    """int64: places along a window, relative to the one nearest to a cell."""
    stride_L2: Tensor
    """float32: px from a place to the next."""
    least_L2: Tensor
    """float32: the lowest place at which the middle of a window may lie."""
    most_L2: Tensor
    """float32: the highest."""
    outside_LWW: Tensor
    """float32, by row and column of the window: 0, or inf where a level is smaller than the window."""
    columns_L11: Tensor
    """int64: places in a row of a level."""
    shapes_L11: Tensor
    """int64: anchors at a place."""
    first_L1S: Tensor
    """int64: index of the anchors at a level's first place."""
    kept_K: Tensor | None
    """int64: which of the (L, P, S) candidates there are, the same for every cell; ``None`` if all."""
    anchors_AC: Tensor
    """float32: x1, y1, x2, y2, area, and the centre's x and y of each anchor."""

    @classmethod
    def of(cls, grid: "AnchorGrid", places: int) -> "CandidateTable":
        """The table for the ``places`` nearest on each level.

        Anchors stand symmetrically around their places, the first of which is at 0, 0.
        """
        device = grid.boxes_A4.device
        shapes_L, rows_L, columns_L = torch.tensor([level.shape for level in grid.levels], device=device).unbind(dim=1)
        reach = math.ceil(math.sqrt(places))
        window_W = torch.arange(-reach, reach + 1, device=device)
        length_L2 = torch.stack([columns_L, rows_L], dim=1)
        is_outside_L2W = window_W + reach >= length_L2[..., None]
        is_outside_LWW = is_outside_L2W[:, 1, :, None] | is_outside_L2W[:, 0, None, :]
        shape_S = torch.arange(int(shapes_L.max()), device=device)
        place_P = torch.arange(places, device=device)
        places_L = (~is_outside_LWW).sum(dim=(1, 2))
        is_there_LPS = (place_P[:, None] < places_L[:, None, None]) & (shape_S < shapes_L[:, None, None])
        boxes = grid.boxes_A4
        centre_A2 = (boxes[:, :2] + boxes[:, 2:]) / 2
        area_A1 = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1, keepdim=True)
        return cls(
            places,
            window_W,
            torch.tensor([level.stride[::-1] for level in grid.levels], dtype=torch.float32, device=device),
            torch.full_like(length_L2, reach).float(),
            (length_L2 - 1 - reach).clamp(min=reach).float(),
            torch.where(is_outside_LWW, math.inf, 0.0),
            columns_L[:, None, None],
            shapes_L[:, None, None],
            torch.tensor([level.first for level in grid.levels], device=device)[:, None, None] + shape_S,
            None if is_there_LPS.all() else is_there_LPS.flatten().nonzero()[:, 0],
            torch.cat([boxes, area_A1, centre_A2], dim=1),
        )


@dataclass(frozen=True)
class AnchorGrid:
    """All anchors of an image of a given size."""

    boxes_A4: Tensor
    """float32, level by level; within a level by row, column and shape, as the RPN's head answers."""
    levels: tuple[AnchorLevel, ...]
    from_planes_A: Tensor
    """int64: index of each anchor if a level is ordered by shape, row and column instead."""
    edges: tuple[Tensor, Tensor, Tensor]
    """``x_SW2`` of all levels as (X, 2), ``y_SH2`` of all levels as (Y, 2), and the areas (Y,) of the anchors that each
    row is of."""
    _candidates: dict[int, CandidateTable] = field(default_factory=dict)

    def candidates(self, places: int) -> CandidateTable:
        """The table for the ``places`` nearest, made once."""
        if places not in self._candidates:
            with torch.inference_mode(False):
                self._candidates[places] = CandidateTable.of(self, places)
        return self._candidates[places]


class CellAnchors(AnchorGenerator):
    """torchvision's generator with the anchors of a location ordered by size, then by aspect ratio.

    With one size per level this is torchvision's own order. With several, the anchors of each size stay together, which
    lets all levels share one RPN head (see :class:`SharedRPNHead`).

    Anchors are float32 whatever the feature maps are: bfloat16 cannot tell 513 from 515.
    """

    def __init__(self, sizes: tuple[int, ...], ratios: tuple[float, ...]):
        """``sizes`` are square roots of areas (px), ``ratios`` are height / width; both rise."""
        levels = sizes_per_level(sizes)
        super().__init__(levels, (ratios,) * len(levels))
        self._grids: dict[tuple[object, ...], AnchorGrid] = {}

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (A, 4) of each image, which are the same for all of a batch."""
        return [self.grid(image_list, feature_maps).boxes_A4] * len(image_list.image_sizes)

    def grid(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> AnchorGrid:
        """The anchors of each image of the padded batch ``image_list``."""
        height, width = image_list.tensors.shape[-2:]
        sizes = [tuple(feature_map.shape[-2:]) for feature_map in feature_maps]
        key = (height, width, *sizes, feature_maps[0].device)
        if key not in self._grids:
            while len(self._grids) >= GRIDS_KEPT:
                self._grids.pop(next(iter(self._grids)))
            with torch.inference_mode(False):  # what is remembered in prediction serves training too
                self._grids[key] = self._new_grid((height, width), sizes, feature_maps[0].device)
        return self._grids[key]

    def _new_grid(
        self, image_size: tuple[int, int], sizes: Sequence[tuple[int, ...]], device: torch.device
    ) -> AnchorGrid:
        levels: list[AnchorLevel] = []
        boxes, from_planes, edges, areas, first = [], [], [], [], 0
        for base_S4, (height, width) in zip(self.cell_anchors, sizes, strict=True):
            stride = image_size[0] // height, image_size[1] // width  # torchvision's, for grids that do not divide too
            base_S4 = base_S4.to(device, torch.float32)
            row_H, column_W = (torch.arange(n, device=device) * s for n, s in zip((height, width), stride, strict=True))
            x_SW2 = base_S4[:, None, 0::2] + column_W[:, None]
            y_SH2 = base_S4[:, None, 1::2] + row_H[:, None]
            level = AnchorLevel(first, stride, x_SW2, y_SH2)
            shape_HWS = (height, width, len(base_S4))
            x_HWS2 = x_SW2.transpose(0, 1)[None].expand(*shape_HWS, 2)
            y_HWS2 = y_SH2.transpose(0, 1)[:, None].expand(*shape_HWS, 2)
            boxes.append(torch.stack([x_HWS2, y_HWS2], dim=-1).reshape(-1, 4))
            count = len(boxes[-1])
            planes_SHW = first + torch.arange(count, device=device).reshape(level.shape)
            from_planes.append(planes_SHW.permute(1, 2, 0).reshape(-1))
            levels.append(level)
            edges.append((x_SW2, y_SH2))
            areas.append(((base_S4[:, 2:] - base_S4[:, :2]).prod(dim=1)[:, None].expand(-1, height)).flatten())
            first += count
        x_X2, y_Y2 = (torch.cat([edge.flatten(0, 1) for edge in e]) for e in zip(*edges, strict=True))
        edges_of_all = x_X2, y_Y2, torch.cat(areas)
        return AnchorGrid(torch.cat(boxes), tuple(levels), torch.cat(from_planes), edges_of_all)

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008  # torchvision's signature
    ) -> Tensor:
        """Generate (sizes * ratios, 4) anchors around the origin, in px."""
        of_size = [super(CellAnchors, self).generate_anchors([s], aspect_ratios, dtype, device) for s in scales]
        return torch.cat(of_size)


class SharedRPNHead(RPNHead):
    """torchvision's RPN head for levels with different numbers of anchors.

    The head has as many outputs as the finest level needs; coarser levels use the last ones, which belong to the
    largest size of the finest level. With equal numbers it is torchvision's head.
    """

    def __init__(self, channels: int, anchors_per_level: list[int], conv_depth: int):
        super().__init__(channels, max(anchors_per_level), conv_depth=conv_depth)
        self.anchors_per_level = anchors_per_level

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute objectness (B, A, H, W) and box deltas (B, 4A, H, W) of each level."""
        objectness, deltas = super().forward(maps)
        return (
            [scores[:, -count:] for scores, count in zip(objectness, self.anchors_per_level, strict=True)],
            [boxes[:, -4 * count :] for boxes, count in zip(deltas, self.anchors_per_level, strict=True)],
        )

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # Weights trained with one size per level initialise every size of the finest level alike. Weights of other
        # aspect ratios would end up at the wrong anchors, so loading them fails.
        one_size = min(self.anchors_per_level)
        for name, outputs in (("cls_logits", 1), ("bbox_pred", 4)):
            for kind in ("weight", "bias"):
                key = f"{prefix}{name}.{kind}"
                wanted = getattr(getattr(self, name), kind).shape[0]
                loaded = state_dict.get(key)
                if loaded is not None and loaded.shape[0] == one_size * outputs < wanted:
                    repeats = (wanted // loaded.shape[0], *[1] * (loaded.dim() - 1))
                    state_dict[key] = loaded.repeat(repeats)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build_rpn_head(generator: CellAnchors, channels: int, conv_depth: int) -> nn.Module:
    """Build the RPN head that fits ``generator``."""
    return SharedRPNHead(channels, generator.num_anchors_per_location(), conv_depth)
