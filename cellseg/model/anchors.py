"""Anchors: the boxes the RPN starts from, and an RPN head that may have more of them on the finest level."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead

NUM_LEVELS = 5
"""Levels of the FPN, strides 4, 8, 16, 32 and 64."""


def sizes_per_level(sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return one tuple of sizes (px) per FPN level, finest first; surplus small sizes share the finest level."""
    surplus = len(sizes) - NUM_LEVELS
    assert surplus >= 0, f"{NUM_LEVELS} levels need as many sizes"
    return (tuple(sizes[: surplus + 1]), *((size,) for size in sizes[surplus + 1 :]))


class CellAnchors(AnchorGenerator):
    """torchvision's generator with the anchors of a location ordered by size, then by aspect ratio.

    With one size per level this is torchvision's own order. With several, the anchors of each size stay together, which
    lets all levels share one RPN head (see :class:`SharedRPNHead`).
    """

    def __init__(self, sizes: tuple[int, ...], ratios: tuple[float, ...]):
        """``sizes`` are square roots of areas (px), ``ratios`` are height / width; both rise."""
        levels = sizes_per_level(sizes)
        super().__init__(levels, (ratios,) * len(levels))

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
