"""Views of an image for test-time augmentation: turned and mirrored images, and the way back of what is found there.

A turn mirrors the image from left to right, or not, and then rotates it by quarters. Pixels only change places, so the
way back is exact.

Shape suffixes: H height, W width, C colour channels, N detections, 4 = x1, y1, x2, y2.
"""

from dataclasses import dataclass, replace

import numpy as np

from cellseg.config import TrialConfig
from cellseg.data.detections import Detections
from cellseg.data.softmask import SoftMask
from cellseg.errors import UserError

TURNS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "rot90": ((0, False), (1, False), (2, False), (3, False)),
    "flips,rot90": tuple((quarters, mirrored) for mirrored in (False, True) for quarters in range(4)),
}
"""Values of ``inference.turns`` -> (quarters, mirrored) of each view. The image as it is comes first."""
TTA_SCALES = "0.8,1,1.25"
"""``inference.scales`` of test-time augmentation."""
TTA_PARTS = ("flips", "rot90", "scales")


@dataclass(frozen=True)
class Turn:
    """One of the eight symmetries of the square."""

    quarters: int = 0
    """Rotation by quarters, counter-clockwise, after mirroring."""
    mirrored: bool = False

    @property
    def is_none(self) -> bool:
        """Whether the image stays as it is."""
        return not (self.quarters or self.mirrored)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) after the turn."""
        return (size[1], size[0]) if self.quarters % 2 else size

    def apply(self, image_HWC: np.ndarray) -> np.ndarray:
        """Turn an image or a mask; a view of it."""
        return np.rot90(image_HWC[:, ::-1] if self.mirrored else image_HWC, self.quarters)

    def undo(self, found: Detections, mask_threshold: float) -> Detections:
        """Bring what was found in a turned image, with soft masks, back to the image."""
        if self.is_none:
            return found
        assert found.soft is not None, "soft masks turn back; run lengths do not"
        (height, width), boxes_N4, soft = found.size, found.boxes_N4, found.soft
        for _ in range(self.quarters):  # each goes back by a quarter, in an image of height x width
            x1, y1, x2, y2 = boxes_N4.T
            boxes_N4 = np.stack([height - y2, x1, height - y1, x2], axis=1)
            soft = tuple(
                SoftMask(mask.left, height - mask.top - mask.values_hw.shape[0], np.rot90(mask.values_hw, -1))
                for mask in soft
            )
            height, width = width, height
        if self.mirrored:
            x1, y1, x2, y2 = boxes_N4.T
            boxes_N4 = np.stack([width - x2, y1, width - x1, y2], axis=1)
            soft = tuple(
                SoftMask(mask.top, width - mask.left - mask.values_hw.shape[1], mask.values_hw[:, ::-1])
                for mask in soft
            )
        rles = tuple(mask.encode(mask_threshold, (height, width)) for mask in soft)
        return replace(found, size=(height, width), boxes_N4=boxes_N4, rles=rles, soft=soft)


@dataclass(frozen=True)
class View:
    """One way in which the network sees an image."""

    turn: Turn
    scaled_size: tuple[int, int]
    """(height, width) of the scaled image before it is turned, in pixels."""

    @property
    def shown_size(self) -> tuple[int, int]:
        """(height, width) that the network sees."""
        return self.turn.size(self.scaled_size)


def turns_of(name: str) -> list[Turn]:
    """List the turns of a value of ``inference.turns``."""
    return [Turn(*turn) for turn in TURNS[name]]


def with_tta(config: TrialConfig, parts: str | None) -> TrialConfig:
    """Return ``config`` with test-time augmentation.

    Args:
        parts: comma-separated names of ``TTA_PARTS``; None leaves the config as it is. ``scales`` keeps the scales of
            a config that has several.

    Raises:
        UserError: another name.
    """
    if parts is None:
        return config
    names = [name.strip() for name in parts.split(",")]
    if unknown := [name for name in names if name not in TTA_PARTS]:
        raise UserError(
            f"--tta: must be some of {', '.join(TTA_PARTS)}, comma-separated, but got '{', '.join(unknown)}'. "
            "Use --tta flips,rot90 for the eight turns."
        )
    inference = config.inference
    turns = ",".join(name for name in ("flips", "rot90") if name in names) or inference.turns
    scales = TTA_SCALES if "scales" in names and "," not in inference.scales else inference.scales
    return config.replace(inference__turns=turns, inference__scales=scales)
