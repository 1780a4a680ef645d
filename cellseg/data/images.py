"""Readers of image files: RGB images and cell-id maps, from TIFF, PNG or JPEG of any pixel type.

Shape suffixes: H height, W width, S samples per pixel (1 to 4).
"""

import io
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from cellseg.data.channels import PlaneChoice, arrange, pick_channels, project
from cellseg.data.headers import jpeg_size, png_size, require_size
from cellseg.errors import UserError

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpg", ".jpeg")
"""Suffixes, in lower case, of the files that are looked for. What a file holds is read from its first bytes."""

PLAIN = PlaneChoice()
"""Images are flat, and grey or RGB."""
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

STRETCH_PERCENTILES = (0.1, 99.9)
"""Percentiles of an image's values that become 0 and 255 when it is not uint8."""
VALUES_AT_ONCE = 1 << 22
"""Values that are stretched at a time."""


def read_image(path: Path, choice: PlaneChoice = PLAIN) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB.

    Takes grey, grey + alpha, RGB and RGBA, samples last or first; other channels, and stacks, as ``choice`` says. Alpha
    is dropped; pixels become RGB as :func:`to_rgb` says.

    Raises:
        UserError: missing, unreadable, cut off, larger than the limit of :mod:`cellseg.data.headers`, channels or
            planes that ``choice`` does not deal with, or non-finite pixels.
    """
    return to_rgb(read_values(path, choice), str(path), choice)


def read_values(path: Path, choice: PlaneChoice = PLAIN) -> np.ndarray:
    """Read an image's pixels as the file holds them: (H, W, S) of a bool, integer or floating-point type, S 1 or 3, or
    any with ``data.channels``; a stack is projected.

    :func:`to_rgb` makes of them what :func:`read_image` returns, and raises for pixels that are not finite.

    Raises:
        UserError: as :func:`read_image`.
    """
    path = Path(path)
    pixels_HWS = _read(path, as_color=True, choice=choice)
    channels = pixels_HWS.shape[2]
    if choice.channels is None and channels not in (1, 3):
        raise UserError(
            f"{path}: must be grey or RGB, with or without alpha, but got {channels} channels. Set data.channels "
            "(--channels) to those that become red, green and blue, or export it as RGB."
        )
    return pixels_HWS


def decode_image(data: bytes, where: str, choice: PlaneChoice = PLAIN) -> np.ndarray:
    """Read a PNG or JPEG image that another file holds, as :func:`read_image` does.

    Raises:
        UserError: another format, or what :func:`read_image` refuses.
    """
    pixels_HWS = _checked(Path(where), lambda: _decode(Path(where), data, as_color=True))
    return _colors(pixels_HWS, choice, where)


def read_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of an image, in pixels, without its pixels where the format allows that.

    Raises:
        UserError: missing, unreadable, or no image.
    """
    path = Path(path)

    def measure() -> np.ndarray:
        with path.open("rb") as file:
            if file.read(4) in _TIFF_STARTS:
                with _without_chatter(), tifffile.TiffFile(path) as tiff:
                    return np.array([tiff.pages[0].imagelength, tiff.pages[0].imagewidth])
        return np.array(_decode(path, path.read_bytes(), as_color=False).shape[:2])

    height, width = _checked(path, measure)
    return int(height), int(width)


def to_rgb(pixels: np.ndarray, where: str = "image", choice: PlaneChoice = PLAIN) -> np.ndarray:
    """An image in memory as (H, W, 3) uint8 RGB: the one rule for arrays and for files.

    Grey is repeated, and a fourth channel, alpha, is dropped. uint8 is taken as it is and bool becomes 0 and 255.
    Everything else (uint16, float, ...) is stretched linearly between the image's own 0.1th and 99.9th percentile: per
    image, because then a test image is treated exactly as a training image, whatever data set it arrives with. The
    percentiles are those over all channels, so that colours stay; with ``data.channels`` those of each channel, since
    stains have no scale in common. What is constant in such a type becomes zeros.

    Args:
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); not empty; bool, integers or floats. With ``data.channels``
            (H, W, C) of any C; with ``data.projection`` also a stack, (Z, H, W, C), or (Z, H, W) where
            ``data.channels`` is not set.
        where: what an error calls the image.

    Raises:
        UserError: no array, another shape or type, or non-finite pixels.
    """
    if not isinstance(pixels, np.ndarray):
        raise UserError(f"{where}: must be a numpy array, but got {type(pixels).__name__}. Convert it with np.asarray.")
    pixels_HWC = _flat_array(pixels, choice)
    if pixels_HWC is None:
        raise UserError(
            f"{where}: must have pixels of the shape {_shapes(choice)}, but got "
            f"{pixels.shape}. Put the channels last, and choose one plane of a stack."
        )
    if pixels.dtype.kind not in "buif":
        raise UserError(f"{where}: must hold bool, integer or floating-point pixels, but got {pixels.dtype}.")
    return _colors(pixels_HWC if choice.channels is not None else pixels_HWC[..., :3], choice, where)


def _flat_array(pixels: np.ndarray, choice: PlaneChoice) -> np.ndarray | None:
    """An array as (H, W, C); None if its shape is none of those that :func:`to_rgb` takes."""
    known = (1, 3, 4)
    if pixels.size == 0:
        return None
    if choice.projection is not None and pixels.ndim == 3 and choice.channels is None and pixels.shape[2] not in known:
        pixels = pixels[..., None]
    if choice.projection is not None and pixels.ndim == 4:
        pixels = project(pixels, choice)
    if pixels.ndim not in (2, 3):
        return None
    pixels = _with_channels(pixels)
    return pixels if choice.channels is not None or pixels.shape[2] in known else None


def _shapes(choice: PlaneChoice) -> str:
    flat = "(H, W) or (H, W, C)" if choice.channels is not None else "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
    if choice.projection is None:
        return flat
    return f"{flat}, or of a stack, (Z, H, W, C)" + ("" if choice.channels is not None else " or (Z, H, W)")


def _colors(pixels_HWC: np.ndarray, choice: PlaneChoice, where: str) -> np.ndarray:
    """Turn channels into (H, W, 3) uint8 RGB by the rule of :func:`to_rgb`."""
    size = pixels_HWC.shape[:2]
    if choice.channels is not None:
        chosen = pick_channels(pixels_HWC, choice, where)
        channels = [np.zeros(size, np.uint8) if each is None else _to_uint8(each, where) for each in chosen]
        pixels_HWC = np.stack(channels, axis=-1)
    else:
        pixels_HWC = _to_uint8(pixels_HWC, where)
    return np.ascontiguousarray(np.broadcast_to(pixels_HWC, (*size, 3)))


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


def _read(path: Path, as_color: bool, choice: PlaneChoice = PLAIN) -> np.ndarray:
    """Read the pixels as (H, W, S) of a bool, integer or floating-point type.

    With ``as_color`` alpha is dropped, palettes are applied, white-is-zero is inverted; else values are as stored.
    """

    def read() -> np.ndarray:
        with path.open("rb") as file:
            start = file.read(8)
        if start[:4] in _TIFF_STARTS:
            return _read_tiff(path, as_color, choice)
        return _decode(path, path.read_bytes(), as_color)

    return _checked(path, read)


def _decode(path: Path, data: bytes, as_color: bool) -> np.ndarray:
    """Decode a PNG or JPEG file into (H, W, S)."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        pixels_HWS = _decode_png(path, data, as_color)
        return pixels_HWS[..., :-1] if as_color and pixels_HWS.shape[2] in (2, 4) else pixels_HWS
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(path, data)
    raise UserError(f"{path}: must be a TIFF, PNG or JPEG file, but got none of these. Is the file damaged?")


def _checked(path: Path, read: Callable[[], np.ndarray]) -> np.ndarray:
    """Call ``read`` and turn what goes wrong with a file into a UserError."""
    try:
        pixels_HWS = read()
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


def _decode_png(path: Path, data: bytes, as_color: bool) -> np.ndarray:
    require_size(path, *png_size(data))
    if not as_color and data[25:26] == b"\3":  # a palette: the decoder would look up the ids' colours
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)[..., None]
    return _with_channels(imagecodecs.png_decode(data))


def _decode_jpeg(path: Path, data: bytes) -> np.ndarray:
    require_size(path, *jpeg_size(data))
    # The decoder fills missing parts with grey. A complete file has an end marker after its last start of scan.
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("the JPEG data end too early")
    pixels_HWS = _with_channels(imagecodecs.jpeg8_decode(data))
    if pixels_HWS.shape[2] == 4:
        raise UserError(f"{path}: must be grey or RGB, but got a CMYK JPEG. Export it as RGB.")
    return pixels_HWS


def _read_tiff(path: Path, as_color: bool, choice: PlaneChoice) -> np.ndarray:
    with _without_chatter(), tifffile.TiffFile(path) as tiff:
        pages = [page for page in tiff.pages if not (page.is_reduced or page.is_mask)]  # thumbnails and matte
        for page in pages:
            require_size(path, page.imagelength, page.imagewidth, page.samplesperpixel * page.imagedepth)
            _require_all_segments(page, tiff.filehandle.size)
        if len(pages) == 1 and (len(tiff.pages) > 1 or _is_flat(tiff.series[0])):
            page = pages[0]
            if page.axes in ("YX", "YXS", "SYX"):
                return _page_pixels(page, path, as_color)
        if not as_color and len(pages) != 1:
            raise UserError(
                f"{path}: must hold one image, but got {len(pages)} pages. Export a single plane or a projection."
            )
        series = [each for each in tiff.series if not (each.keyframe.is_reduced or each.keyframe.is_mask)]
        if len(series) != 1:
            raise UserError(
                f"{path}: must hold one image, but got {len(pages)} pages of {len(series)} images. Export one of them."
            )
        axes, shape = series[0].get_axes(), series[0].get_shape()
        num_planes = int(np.prod([length for axis, length in zip(axes, shape, strict=True) if axis not in "YX"]))
        require_size(path, shape[axes.index("Y")], shape[axes.index("X")], num_planes)
        return arrange(series[0].asarray(), axes, choice, str(path), max(num_planes, len(pages)))


def _is_flat(series: tifffile.TiffPageSeries) -> bool:
    """Whether a series has no more than one plane; ImageJ leaves out the other planes' pages in large files."""
    return all(length == 1 or axis in "YXS" for axis, length in zip(series.axes, series.shape, strict=True))


def _page_pixels(page: tifffile.TiffPage, path: Path, as_color: bool) -> np.ndarray:
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
