"""Readers of image files: RGB images and cell-id maps, from TIFF, PNG or JPEG of any pixel type.

Shape suffixes: H height, W width, S samples per pixel (1 to 4).
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from cellseg.data.headers import jpeg_size, png_size, require_size
from cellseg.errors import UserError

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpg", ".jpeg")
"""Suffixes, in lower case, of the files that are looked for. What a file holds is read from its first bytes."""

STRETCH_PERCENTILES = (0.1, 99.9)
"""Percentiles of an image's values that become 0 and 255 when it is not uint8."""
VALUES_AT_ONCE = 1 << 22
"""Values that are stretched at a time."""


def read_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    Takes grey, grey + alpha, RGB and RGBA, samples last or first. Alpha is dropped; pixels become RGB as :func:`to_rgb`
    says.

    Raises:
        UserError: missing, unreadable, cut off, larger than the limit of :mod:`cellseg.data.headers`, more than one
            page, other channels than above, or non-finite pixels.
    """
    return to_rgb(read_values(path), str(path))


def read_values(path: Path) -> np.ndarray:
    """Read an image's pixels as the file holds them: (H, W, S) of a bool, integer or floating-point type, S 1 or 3.

    :func:`to_rgb` makes of them what :func:`read_image` returns, and raises for pixels that are not finite.

    Raises:
        UserError: as :func:`read_image`.
    """
    path = Path(path)
    pixels_HWS = _read(path, as_color=True)
    channels = pixels_HWS.shape[2]
    if channels not in (1, 3):
        raise UserError(
            f"{path}: must be grey or RGB, with or without alpha, but got {channels} channels. Export it as RGB."
        )
    return pixels_HWS


def to_rgb(pixels: np.ndarray, where: str = "image") -> np.ndarray:
    """An image in memory as (H, W, 3) uint8 RGB: the one rule for arrays and for files.

    Grey is repeated, and a fourth channel, alpha, is dropped. uint8 is taken as it is and bool becomes 0 and 255.
    Everything else (uint16, float, ...) is stretched linearly between the image's own 0.1th and 99.9th percentile over
    all channels: per image, because then a test image is treated exactly as a training image, whatever data set it
    arrives with. A constant image of such a type becomes zeros.

    Args:
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); not empty; bool, integers or floats.
        where: what an error calls the image.

    Raises:
        UserError: no array, another shape or type, or non-finite pixels.
    """
    if not isinstance(pixels, np.ndarray):
        raise UserError(f"{where}: must be a numpy array, but got {type(pixels).__name__}. Convert it with np.asarray.")
    if pixels.size == 0 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"{where}: must have pixels of the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), but got "
            f"{pixels.shape}. Put the channels last, and choose one plane of a stack."
        )
    if pixels.dtype.kind not in "buif":
        raise UserError(f"{where}: must hold bool, integer or floating-point pixels, but got {pixels.dtype}.")
    pixels_HWS = _with_channels(pixels)[..., :3]
    return np.ascontiguousarray(np.broadcast_to(_to_uint8(pixels_HWS, where), (*pixels_HWS.shape[:2], 3)))


def read_id_map(path: Path) -> np.ndarray:
    """Read a map of cell ids as (H, W) int64; 0 is background, and ids need not be contiguous.

    The file holds one value per pixel, of any integer or floating-point type.

    Raises:
        UserError: missing, unreadable, cut off, larger than the limit of :mod:`cellseg.data.headers`, several
            channels or pages, or ids that are negative, fractional, not finite or beyond int64.
    """
    path = Path(path)
    values_HWS = _read(path, as_color=False)
    if values_HWS.shape[2] != 1:
        raise UserError(
            f"{path}: an id map must have one value per pixel, but got {values_HWS.shape[2]}. "
            "Export it as a single-channel image."
        )
    values_HW = values_HWS[..., 0]
    if values_HW.dtype.kind == "f":
        _require_finite(values_HW, str(path))
        fractional_HW = values_HW != np.floor(values_HW)
        if fractional_HW.any():
            raise UserError(
                f"{path}: ids must be whole numbers, but got {np.count_nonzero(fractional_HW)} pixels like "
                f"{values_HW[fractional_HW][0]}. Was the map resized with interpolation?"
            )
    lowest, highest = int(values_HW.min()), int(values_HW.max())
    if lowest < 0:
        raise UserError(f"{path}: ids must not be negative, but got {lowest}. Background is 0.")
    if highest >= 2**63:
        raise UserError(f"{path}: ids must be below 2**63, but got {highest}. Renumber the cells.")
    return values_HW.astype(np.int64)


def _to_uint8(pixels_HWS: np.ndarray, where: str) -> np.ndarray:
    if pixels_HWS.dtype == np.uint8:
        return pixels_HWS
    if pixels_HWS.dtype == np.bool_:
        return pixels_HWS * np.uint8(255)
    _require_finite(pixels_HWS, where)
    low, high = _percentiles(pixels_HWS)
    if low == high:  # nearly all pixels are alike: a few bright cells on black must not vanish
        low, high = np.float64(pixels_HWS.min()), np.float64(pixels_HWS.max())
    stretched_HWS = np.zeros(pixels_HWS.shape, np.uint8)
    if low == high:
        return stretched_HWS
    # A few rows at a time: in float64 a whole slide would take eight times its memory.
    step = max(1, VALUES_AT_ONCE // pixels_HWS[0].size)
    for start in range(0, len(pixels_HWS), step):
        values_hWS = pixels_HWS[start : start + step].astype(np.float64)
        stretched_HWS[start : start + step] = np.rint((values_hWS - low) / (high - low) * 255).clip(0, 255)
    return stretched_HWS


def _percentiles(pixels: np.ndarray) -> tuple[np.float64, np.float64]:
    """The percentiles that are stretched, as ``numpy.percentile`` finds them in float64, in the memory of one copy."""
    places = [(pixels.size - 1) * (percentile / 100) for percentile in STRETCH_PERCENTILES]
    ranks = sorted({rank for place in places for rank in (math.floor(place), math.ceil(place))})
    sorted_K = np.partition(pixels, ranks, axis=None)
    low, high = (
        _between(np.float64(sorted_K[math.floor(place)]), np.float64(sorted_K[math.ceil(place)]), place % 1)
        for place in places
    )
    return low, high


def _between(low: np.float64, high: np.float64, share: float) -> np.float64:
    """Interpolate linearly from the nearer end, as numpy does: to the same last bit."""
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def _require_finite(values: np.ndarray, where: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise UserError(f"{where}: pixels must be finite, but got {count} that are NaN or infinite. Export it again.")


def _read(path: Path, as_color: bool) -> np.ndarray:
    """Read the pixels as (H, W, S) of a bool, integer or floating-point type.

    With ``as_color`` alpha is dropped, palettes are applied, white-is-zero is inverted; else values are as stored.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            pixels_HWS = _read_tiff(path, as_color)
        elif start == b"\x89PNG\r\n\x1a\n":
            pixels_HWS = _read_png(path)
            if as_color and pixels_HWS.shape[2] in (2, 4):
                pixels_HWS = pixels_HWS[..., :-1]
        elif start[:3] == b"\xff\xd8\xff":
            pixels_HWS = _read_jpeg(path)
        else:
            raise UserError(f"{path}: must be a TIFF, PNG or JPEG file, but got none of these. Is the file damaged?")
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file must exist, but got nothing at that path.") from error
    except OSError as error:
        raise UserError(f"{path}: must be a readable file, but got '{error.strerror or error}'.") from error
    except Exception as error:
        # tifffile and imagecodecs raise ValueError, TypeError, KeyError, struct.error and own types on damaged files.
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: must be a whole image file, but got: {detail}. Copy it again.") from error
    if pixels_HWS.size == 0 or pixels_HWS.dtype.kind not in "buif":
        raise UserError(
            f"{path}: must hold bool, integer or floating-point pixels, but got "
            f"{pixels_HWS.dtype} of shape {pixels_HWS.shape}."
        )
    return pixels_HWS


def _read_png(path: Path) -> np.ndarray:
    data = path.read_bytes()
    require_size(path, *png_size(data))
    return _with_channels(imagecodecs.png_decode(data))


def _read_jpeg(path: Path) -> np.ndarray:
    data = path.read_bytes()
    require_size(path, *jpeg_size(data))
    # The decoder fills missing parts with grey. A complete file has an end marker after its last start of scan.
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("the JPEG data end too early")
    pixels_HWS = _with_channels(imagecodecs.jpeg8_decode(data))
    if pixels_HWS.shape[2] == 4:
        raise UserError(f"{path}: must be grey or RGB, but got a CMYK JPEG. Export it as RGB.")
    return pixels_HWS


def _read_tiff(path: Path, as_color: bool) -> np.ndarray:
    with _without_chatter(), tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if not (page.is_reduced or page.is_mask)]  # thumbnails and matte
        channels_first = len(pages) == 3 and tiff.series[0].axes == "CYX"  # how ImageJ stores a composite
        if len(pages) != 1 and not channels_first:
            raise UserError(
                f"{path}: must hold one image, but got {len(pages)} pages. Export a single plane or a projection."
            )
        for page in pages:
            require_size(path, page.imagelength, page.imagewidth, page.samplesperpixel * page.imagedepth)
            _require_all_segments(page, tiff.filehandle.size)
        if channels_first:
            return np.stack([page.asarray() for page in pages], axis=-1)
        return _page_pixels(pages[0], path, as_color)


def _page_pixels(page: tifffile.TiffPage, path: Path, as_color: bool) -> np.ndarray:
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UserError(
            f"{path}: must be a flat image, but got axes {page.axes} of shape {page.shape}. Export one plane."
        )
    pixels_HWS = _with_channels(np.moveaxis(page.asarray(), 0, -1) if page.axes == "SYX" else page.asarray())
    if not as_color:
        return pixels_HWS
    photometric = tifffile.PHOTOMETRIC(page.photometric)
    if photometric == tifffile.PHOTOMETRIC.PALETTE:
        return (page.colormap >> 8).astype(np.uint8).T[pixels_HWS[..., 0]]
    # Not bool: numpy masks are commonly saved with this tag, though True means white in them.
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels_HWS.dtype.kind == "u":
        pixels_HWS = ~pixels_HWS
    colors = {
        tifffile.PHOTOMETRIC.MINISWHITE: 1,
        tifffile.PHOTOMETRIC.MINISBLACK: 1,
        tifffile.PHOTOMETRIC.RGB: 3,
        tifffile.PHOTOMETRIC.YCBCR: 3,  # the decoder has made it RGB
    }.get(photometric)
    if colors is None:
        raise UserError(f"{path}: must be grey or RGB, but got {photometric.name}. Export it as RGB.")
    samples = pixels_HWS.shape[2]
    # Beside RGB a fourth sample is alpha, declared or not. Beside grey a second may be a stain, which must not vanish.
    alpha = samples == colors + 1 and (colors == 3 or _declares_alpha(page))
    return pixels_HWS[..., :colors] if alpha else pixels_HWS


def _declares_alpha(page: tifffile.TiffPage) -> bool:
    return any(
        extra in (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA) for extra in page.extrasamples
    )


def _require_all_segments(page: tifffile.TiffPage, file_size: int) -> None:
    """Refuse incomplete files: tifffile reads missing strips as zeros and some truncated ones as grey."""
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if not segments or any(count == 0 or offset + count > file_size for offset, count in segments):
        raise ValueError("pixel data are missing or end too early")


def _with_channels(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., None] if pixels.ndim == 2 else pixels


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep tifffile's remarks about odd tags off standard error; handlers that the user set up still get them.

    Python prints the warnings of a logger without any handler. This context adds one.
    """
    logger, handler = logging.getLogger("tifffile"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
