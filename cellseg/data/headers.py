"""Sizes that image files claim, read from their headers and checked before anything is allocated.

A file of a few bytes can claim terabytes. What is refused here costs nothing to refuse.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from cellseg.errors import UserError

MAX_PIXELS = 1_000_000_000
"""Pixels of the largest image that is read unless ``$CELLSEG_MAX_PIXELS`` says otherwise: 3 GB as RGB, held whole."""
SAMPLES = 4
"""Samples of a pixel that the limit allows for: red, green, blue and alpha."""
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""JPEG markers whose segment holds the image's size; the three between them are tables."""
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a segment."""


def require_size(path: Path, height: int, width: int, samples: int = 1) -> None:
    """Refuse an image that is larger than the limit.

    Args:
        samples: per pixel; beyond four they count as further pixels.

    Raises:
        UserError: too many pixels, or a limit that is no number.
    """
    limit = _limit()
    if height * width * max(samples, SAMPLES) > limit * SAMPLES:
        beside = f" x {samples} samples" if samples > SAMPLES else ""
        raise UserError(
            f"{path}: an image must have at most {limit:,} pixels, but got {height} x {width}{beside}. Cut it into "
            "pieces, or set the environment variable CELLSEG_MAX_PIXELS if the file is sound and memory suffices."
        )


def png_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) from the header of a PNG file.

    Raises:
        ValueError: the header is cut off.
    """
    if len(data) < 24:
        raise ValueError("the PNG header ends too early")
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Return the largest (height, width) that a JPEG file's frames claim; decoders differ in which they believe.

    Raises:
        ValueError: there is none before the pixels.
    """
    sizes = list(_frames(data))
    if not sizes:
        raise ValueError("the JPEG header states no size")
    return max(sizes, key=lambda size: size[0] * size[1])


def _frames(data: bytes) -> Iterator[tuple[int, int]]:
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _STANDALONE:
            position += 2
        elif marker in (0xD9, 0xDA):  # the end, or the pixels
            return
        else:
            if marker in _START_OF_FRAME and position + 9 <= len(data):
                yield struct.unpack(">HH", data[position + 5 : position + 9])
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def _limit() -> int:
    text = os.environ.get("CELLSEG_MAX_PIXELS", str(MAX_PIXELS))
    try:
        limit = int(text.replace("_", ""))
    except ValueError:
        limit = 0
    if limit < 1:
        raise UserError(f"CELLSEG_MAX_PIXELS: must be a whole number of at least 1, but got '{text}'. Unset it.")
    return limit
