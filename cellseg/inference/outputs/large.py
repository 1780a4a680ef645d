"""Images that are much larger than those of training: predicted in tiles, at the scale of training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cellseg.config import TrialConfig

TILE = 1024
"""Side of a tile in pixels of the network's input, where neither the caller nor the checkpoint gives one."""
SHARED = 8
"""Neighbouring tiles share at least this part of their side: an eighth."""
MOST_SHARED = 4
"""And no more than this part because the checkpoint says so: a quarter."""
LARGE = 2
"""An image is large if its longer side is more than this many times ``data.longer_side``: the network would see it
shrunk to less than half."""

LEAST_OVERLAP = 32
"""Pixels, by the rules of ``inference.tile_overlap``."""


@dataclass(frozen=True)
class Tiling:
    """How large images are predicted."""

    tile: int | None = None
    """Side of a tile in pixels of the network's input; None: ``inference.tile`` of the checkpoint, else ``TILE``, and
    then for large images only. 0: no tiles."""
    scale: float = 1.0
    """Pixels of the network's input per pixel of the image, where an image is predicted in tiles."""


def tiled_config(config: "TrialConfig", size: tuple[int, int], tiling: Tiling) -> "TrialConfig":
    """The config that predicts an image of ``size`` (height, width): in tiles if it is large, else ``config``.

    In tiles, the image is not fitted into ``data.longer_side``, and not brought to ``data.shorter_side``: those say how
    images of training's size are shown, and would make the cells of a whole slide vanish.

    Args:
        config: resolved, as a checkpoint holds it.
    """
    height, width = size
    if tiling.tile == 0:
        return config.replace(inference__tile=None)
    side = tiling.tile or config.inference.tile or TILE
    limit = side / tiling.scale if tiling.tile is not None else LARGE * config.data.longer_side
    if max(height, width) <= limit:
        return config
    scaled = [max(round(side_of * tiling.scale), 32) for side_of in sorted(size)]  # no side may be set below 32 px
    return config.replace(
        data__resize="aspect",
        data__shorter_side=scaled[0] if tiling.scale > 1 else None,
        data__longer_side=scaled[1],
        inference__tile=side,
        inference__tile_overlap=min(
            max(config.inference.tile_overlap, side // SHARED), max(side // MOST_SHARED, LEAST_OVERLAP)
        ),
    )
