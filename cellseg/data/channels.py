"""Channels and z-planes of a microscopy image, and which of them the network sees as red, green and blue.

Axes are letters as tifffile gives them: Y, X, C channels, S samples of a pixel, Z depth, T time; Q, I and others are
axes whose meaning the file does not say.

Shape suffixes: Z planes in depth, H height, W width, C channels.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from cellseg.config import DataConfig
from cellseg.config.data import parse_channels
from cellseg.errors import UserError


@dataclass(frozen=True)
class PlaneChoice:
    """The part of a config that says which planes of an image are used."""

    channels: str | None = None
    """See ``data.channels``."""
    projection: Literal["max", "mean", "middle"] | None = None
    """See ``data.projection``."""

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """The choice of a config."""
        return cls(data.channels, data.projection)

    @property
    def settings(self) -> dict[str, str]:
        """What is chosen, as reading settings of a data set; empty where nothing is."""
        chosen = {"channels": self.channels, "projection": self.projection}
        return {name: value for name, value in chosen.items() if value is not None}


def arrange(pixels: np.ndarray, axes: str, choice: PlaneChoice, where: str, pages: int = 1) -> np.ndarray:
    """Bring the pixels of a stack into (H, W, C) of the same type, projected along z.

    Args:
        pixels: one axis for each letter of ``axes``.
        pages: how many pages the file has, for an axis without a meaning.

    Raises:
        UserError: a stack and no projection, time points, or an axis of which nobody says what it is.
    """
    meanings = _meanings(pixels.shape, axes, choice, where, pages)
    axes = "".join(meanings)
    pixels = np.squeeze(pixels, tuple(index for index, axis in enumerate(axes) if axis == "1"))
    axes = axes.replace("1", "")
    for axis in "CZ":
        if axis not in axes:
            pixels, axes = pixels[None], axis + axes
    pixels_ZHWC = np.transpose(pixels, [axes.index(axis) for axis in "ZYXC"])
    return project(pixels_ZHWC, choice)


def project(pixels_ZHWC: np.ndarray, choice: PlaneChoice) -> np.ndarray:
    """Project a stack along z, in its own type: a mean of integers is rounded."""
    match choice.projection:
        case "mean" if len(pixels_ZHWC) > 1:
            mean_HWC = pixels_ZHWC.mean(axis=0, dtype=np.float64)
            whole = pixels_ZHWC.dtype.kind in "iu"
            return (np.rint(mean_HWC) if whole else mean_HWC).astype(pixels_ZHWC.dtype)
        case "max":
            return pixels_ZHWC.max(axis=0)
        case _:  # "middle", or a single plane
            return pixels_ZHWC[len(pixels_ZHWC) // 2]


def pick_channels(pixels_HWC: np.ndarray, choice: PlaneChoice, where: str) -> list[np.ndarray | None]:
    """List the chosen channels as (H, W): one for grey, or those of red, green and blue; None is an empty one.

    Raises:
        UserError: a channel that the image lacks.
    """
    assert choice.channels is not None
    numbers = parse_channels(choice.channels)
    count = pixels_HWC.shape[2]
    if max(numbers) > count:
        raise UserError(
            f"{where}: data.channels must name channels from 1 to {count}, as many as the image has, but got "
            f"'{choice.channels}'. Change it, or leave the image out."
        )
    chosen = [pixels_HWC[..., number - 1] if number else None for number in numbers]
    return chosen if len(chosen) == 1 else [*chosen, *[None] * (3 - len(chosen))]


def _meanings(shape: tuple[int, ...], axes: str, choice: PlaneChoice, where: str, pages: int) -> list[str]:
    """Say for each axis what it is: Y, X, C, Z, or 1 for one of length one."""
    found: list[str] = []
    unknown: list[int] = []
    for index, (axis, length) in enumerate(zip(axes, shape, strict=True)):
        if axis in "YX":
            found.append(axis)
        elif length == 1:
            found.append("1")
        elif axis in "CS":
            found.append("C")
        elif axis == "Z":
            found.append("Z")
        elif axis == "T":
            raise UserError(
                f"{where}: must hold one time point, but got {length}. Export the time points as images of their own."
            )
        else:
            unknown.append(index)
            found.append("?")
    if found.count("C") > 1:
        raise UserError(
            f"{where}: must be a flat image, but got axes {axes} of shape {shape}: channels of coloured pixels. "
            "Export one of the two."
        )
    if unknown:
        _name_unknown(found, unknown, choice, where, pages)
    if "Z" in found and choice.projection is None:
        depth = shape[found.index("Z")]
        raise UserError(
            f"{where}: must be a flat image, but got axes {axes} of shape {shape}, {depth} planes. "
            "Set data.projection (--projection) to max, mean or middle, or export one plane."
        )
    return found


def _name_unknown(found: list[str], unknown: list[int], choice: PlaneChoice, where: str, pages: int) -> None:
    """Let the config say what an axis without a meaning is, where it says one thing only."""
    open_roles = [
        role
        for role, chosen in (("C", choice.channels), ("Z", choice.projection))
        if chosen is not None and role not in found
    ]
    if len(unknown) != 1 or len(open_roles) != 1:
        raise UserError(
            f"{where}: must hold one image, but got {pages} pages, and the file does not say whether they are channels "
            "or a z-stack. Set data.channels (--channels) if they are channels, data.projection "
            "(--projection) if they are a stack, or export a single plane."
        )
    found[unknown[0]] = open_roles[0]
