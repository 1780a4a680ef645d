"""Pictures of an image with its cells outlined: the truth on the left, the prediction on the right.

Shape suffixes: H, W the image; h, w a window; C colour channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from cellseg.data.detections import Detections
from cellseg.data.rle import decode_window
from cellseg.files import atomic_path
from cellseg.names import counted

PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (204, 121, 167),
)
"""Colours of classes 1, 2, ... as RGB; the eighth class has the first colour again. Okabe and Ito's set, which people
with any colour vision can tell apart."""

PANEL_WIDTH = 720
"""Smaller images are enlarged, by a whole factor, to at least this width in pixels."""

LARGEST_SIDE = 4096
"""Larger images are shrunk to this longer side in pixels."""

_MAX_SIDE = 2400  # enlarging stops here, so that a narrow, tall image does not grow into a tower
_SHIFT = 4  # contours are drawn to 1/16 pixel
_MARGIN, _TITLE_HEIGHT, _LEGEND_HEIGHT, _FONT_SIZE = 24, 44, 36, 22
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def draw_overlay(
    image_HWC: np.ndarray,
    truth: Detections,
    prediction: Detections,
    class_names: Sequence[str],
    min_score: float = 0.5,
) -> np.ndarray:
    """Draw the image twice, side by side: the true cells and the predicted ones, outlined in their class's colour.

    Above each stands the number of cells, below them a legend of the classes. Small images are enlarged.

    Args:
        image_HWC: (H, W, 3) uint8, RGB.
        truth, prediction: cells of this image, with labels from 1 to ``len(class_names)``; either may be without any.
        class_names: the first names class 1.
        min_score: predictions with a lower score, in [0, 1], are left out.

    Returns:
        (H', W', 3) uint8, RGB; always the same for the same input.
    """
    size = image_HWC.shape[:2]
    assert truth.size == size == prediction.size, f"image {size}, truth {truth.size}, prediction {prediction.size}"
    shown = prediction.above(min_score)
    panels = [
        (f"annotation: {_cells(len(truth))}", _draw_cells(image_HWC, truth)),
        (f"prediction: {_cells(len(shown))}, score >= {min_score:.2f}", _draw_cells(image_HWC, shown)),
    ]
    return _set_page(panels, class_names)


def write_overlay(
    path: Path,
    image_HWC: np.ndarray,
    truth: Detections,
    prediction: Detections,
    class_names: Sequence[str],
    min_score: float = 0.5,
) -> None:
    """Write the picture of :func:`draw_overlay` as PNG, atomically; parent folders are made.

    Raises:
        UserError: the file cannot be written.
    """
    picture_HWC = draw_overlay(image_HWC, truth, prediction, class_names, min_score)
    with atomic_path(path) as temporary:
        Image.fromarray(picture_HWC).save(temporary, format="PNG")


def write_prediction(path: Path, image_HWC: np.ndarray, cells: Detections, class_names: Sequence[str]) -> None:
    """Write one image with its predicted cells outlined as PNG, atomically; parent folders are made.

    Small images are enlarged, large ones shrunk to a longer side of ``LARGEST_SIDE``.

    Args:
        image_HWC, cells, class_names: as for :func:`draw_overlay`.

    Raises:
        UserError: the file cannot be written.
    """
    picture_HWC = _set_page([(f"prediction: {_cells(len(cells))}", _draw_cells(image_HWC, cells))], class_names)
    with atomic_path(path) as temporary:
        Image.fromarray(picture_HWC).save(temporary, format="PNG")


def class_color(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class, counted from 1."""
    return PALETTE[(label - 1) % len(PALETTE)]


def _cells(count: int) -> str:
    return counted(count, "cell")


def _draw_cells(image_HWC: np.ndarray, cells: Detections) -> np.ndarray:
    """Draw the image, enlarged or shrunk, with a faint fill and a thin smooth contour for each cell."""
    height, width = cells.size
    scale = max(1, min(-(-PANEL_WIDTH // width), _MAX_SIDE // max(height, width)))
    shrinking = min(1.0, LARGEST_SIDE / max(height, width))
    if shrinking < 1:
        picture_HWC = cv2.resize(image_HWC, None, fx=shrinking, fy=shrinking, interpolation=cv2.INTER_AREA)
    else:
        picture_HWC = cv2.resize(image_HWC, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    outlines = [_outline(rle, scale, shrinking) for rle in cells.rles]
    fill_HWC = picture_HWC.copy()
    for outline, label in zip(outlines, cells.labels_N, strict=True):
        cv2.fillPoly(fill_HWC, outline, class_color(int(label)), cv2.LINE_AA, _SHIFT)
    picture_HWC = cv2.addWeighted(fill_HWC, 0.16, picture_HWC, 0.84, 0)
    # A dark line under the coloured one keeps yellow visible on white and blue on purple.
    shadow_HWC = picture_HWC.copy()
    rings = [ring for outline in outlines for ring in outline]
    cv2.polylines(shadow_HWC, rings, True, (0, 0, 0), 4, cv2.LINE_AA, _SHIFT)
    picture_HWC = cv2.addWeighted(shadow_HWC, 0.45, picture_HWC, 0.55, 0)
    for outline, label in zip(outlines, cells.labels_N, strict=True):
        cv2.polylines(picture_HWC, outline, True, class_color(int(label)), 2, cv2.LINE_AA, _SHIFT)
    return np.asarray(picture_HWC, dtype=np.uint8)


def _outline(rle: dict, scale: int, shrinking: float) -> list[np.ndarray]:
    """Trace the closed contours of a mask in the picture, inner ones too; an empty list for an empty mask.

    Each is (points, 1, 2) int32 x, y in units of ``2**-_SHIFT`` of the picture's pixels, smoothed over two pixels of
    the image.

    Args:
        scale, shrinking: the picture's pixels per pixel of the image, before and after shrinking; one of them is 1.
    """
    top, left, window_hw = decode_window(rle)
    if not window_hw.size:
        return []
    # A pixel of background around the window lets the enlarged mask fall off on all sides.
    mask_hw = np.pad(window_hw, 1).astype(np.float32)
    large_hw = cv2.resize(mask_hw, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR) >= 0.5
    offset = ((left - 1) * scale, (top - 1) * scale)
    rings, _ = cv2.findContours(large_hw.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=offset)
    # Averaging along the contour takes the pixels' staircase away; unlike a blurred mask it cannot lose thin parts.
    smooth = [ndimage.uniform_filter1d(ring.astype(np.float32), 2 * scale + 1, axis=0, mode="wrap") for ring in rings]
    return [np.rint(ring * (shrinking * 2**_SHIFT)).astype(np.int32) for ring in smooth]


class _Swatch(NamedTuple):
    """An entry of the legend: where its square begins, in pixels from the legend's corner."""

    x: int
    y: int
    label: int
    name: str


def _set_page(panels: Sequence[tuple[str, np.ndarray]], class_names: Sequence[str]) -> np.ndarray:
    """Lay out titled pictures of one size in a row on white paper, with the legend below."""
    font = ImageFont.load_default(_FONT_SIZE)
    panel_height, image_width = panels[0][1].shape[:2]
    panel_width = max(image_width, PANEL_WIDTH)  # titles need the room even over a narrow image
    page_width = _MARGIN + len(panels) * (panel_width + _MARGIN)
    legend, legend_height = _lay_out_legend(class_names, page_width - 2 * _MARGIN, font)
    bottom = _TITLE_HEIGHT + _MARGIN // 2 + panel_height
    page = Image.new("RGB", (page_width, bottom + _MARGIN // 2 + legend_height + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, (title, picture_HWC) in enumerate(panels):
        left = _MARGIN + index * (panel_width + _MARGIN)
        draw.text((left, _MARGIN // 2 + _TITLE_HEIGHT // 2), title, _INK, font, anchor="lm")
        page.paste(Image.fromarray(picture_HWC), (left, _TITLE_HEIGHT + _MARGIN // 2))
    for x, y, label, name in legend:
        x, y = x + _MARGIN, y + bottom + _MARGIN // 2 + _LEGEND_HEIGHT // 2
        draw.rounded_rectangle((x, y - 9, x + 18, y + 9), 4, class_color(label), _INK)
        draw.text((x + 28, y), name, _INK, font, anchor="lm")
    return np.asarray(page)


def _lay_out_legend(
    class_names: Sequence[str], width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> tuple[list[_Swatch], int]:
    """Lay out one swatch per class, in lines at most ``width`` px long (unless one name is longer), and the height
    of all."""
    swatches: list[_Swatch] = []
    x, y = 0, 0
    for label, name in enumerate(class_names, start=1):
        extent = 28 + round(font.getlength(name)) + 32
        if x and x + extent > width:
            x, y = 0, y + _LEGEND_HEIGHT
        swatches.append(_Swatch(x, y, label, name))
        x += extent
    return swatches, y + _LEGEND_HEIGHT
