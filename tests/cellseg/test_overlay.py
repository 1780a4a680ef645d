"""Overlay pictures: what is drawn where, for any size of image and number of cells."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg.data.detections import Detections
from cellseg.data.planes import stack_masks
from cellseg.data.sample import Sample
from cellseg.errors import UserError
from cellseg.overlay import PALETTE, PANEL_WIDTH, class_color, draw_overlay, write_overlay

NAMES = ["round", "oval"]
GREY = 128


def cells(size: tuple[int, int], *boxes: tuple[int, int, int, int, int, float]) -> Detections:
    """Rectangular cells: top, left, bottom, right, label, score."""
    masks = [(np.ones((y2 - y1, x2 - x1), bool), (y1, x1), label) for y1, x1, y2, x2, label, _ in boxes]
    sample = Sample("a", np.zeros((*size, 3), np.uint8), *stack_masks(masks, *size))
    found = Detections.from_sample(sample)
    scores = np.array([score for *_, score in boxes], np.float32)
    return Detections(size, found.boxes_N4, scores, found.labels_N, found.rles)


def grey_image(size: tuple[int, int]) -> np.ndarray:
    return np.full((*size, 3), GREY, np.uint8)


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(axis=-1).any())


def picture_part(picture: np.ndarray, side: str) -> np.ndarray:
    """The left or right half, without the legend."""
    half = picture.shape[1] // 2
    return (picture[:, :half] if side == "left" else picture[:, half:])[:-60]


def test_truth_is_drawn_on_the_left_and_prediction_on_the_right_in_the_class_color() -> None:
    size = (80, 100)
    truth, prediction = cells(size, (10, 10, 30, 40, 1, 1.0)), cells(size, (40, 50, 70, 90, 2, 0.9))
    picture = draw_overlay(grey_image(size), truth, prediction, NAMES)
    assert has_color(picture_part(picture, "left"), class_color(1))
    assert not has_color(picture_part(picture, "left"), class_color(2))
    assert has_color(picture_part(picture, "right"), class_color(2))
    assert not has_color(picture_part(picture, "right"), class_color(1))


def test_the_contour_lies_on_the_border_of_the_mask_and_the_inside_is_tinted() -> None:
    size, scale = (90, 120), PANEL_WIDTH // 120
    picture = draw_overlay(grey_image(size), cells(size, (30, 40, 60, 80, 2, 1.0)), Detections.empty(size), NAMES)
    found = (picture_part(picture, "left") == class_color(2)).all(axis=-1)
    rows, columns = np.nonzero(found)
    assert np.ptp(rows) == pytest.approx(30 * scale, abs=4)
    assert np.ptp(columns) == pytest.approx(40 * scale, abs=4)
    inside = picture[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
    assert not (inside == GREY).all()
    assert np.abs(inside.astype(int) - GREY).max() < 30


def test_predictions_below_the_score_are_left_out() -> None:
    size = (60, 60)
    prediction = cells(size, (5, 5, 20, 20, 1, 0.9), (30, 30, 50, 50, 2, 0.4))
    strict = draw_overlay(grey_image(size), Detections.empty(size), prediction, NAMES)
    loose = draw_overlay(grey_image(size), Detections.empty(size), prediction, NAMES, min_score=0.4 - 1e-6)
    assert not has_color(picture_part(strict, "right"), class_color(2))
    assert has_color(picture_part(loose, "right"), class_color(2))


def test_the_same_input_gives_the_same_picture() -> None:
    size = (50, 70)
    found = cells(size, (5, 5, 20, 20, 1, 0.9), (15, 15, 40, 50, 2, 0.8))
    first, second = (draw_overlay(grey_image(size), found, found, NAMES) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("size", [(33, 86), (128, 128), (64, 1000), (1000, 20), (1401, 2150)])
def test_panels_are_wide_enough_to_read_and_images_keep_their_shape(size: tuple[int, int]) -> None:
    nothing = Detections.empty(size)
    picture = draw_overlay(grey_image(size), nothing, nothing, NAMES)
    assert picture.dtype == np.uint8
    assert picture.shape[1] >= 2 * PANEL_WIDTH
    panel = (picture_part(picture, "left") == GREY).all(axis=-1)
    rows, columns = np.flatnonzero(panel.any(axis=1)), np.flatnonzero(panel.any(axis=0))
    assert len(rows) / len(columns) == pytest.approx(size[0] / size[1])
    assert len(columns) >= min(PANEL_WIDTH, 2 * size[1])
    assert max(len(rows), len(columns)) <= max(2400, *size)


def test_an_image_is_not_changed() -> None:
    image = grey_image((40, 40))
    found = cells((40, 40), (5, 5, 20, 20, 1, 0.9))
    draw_overlay(image, found, found, NAMES)
    assert (image == GREY).all()


def test_an_empty_mask_and_a_mask_of_one_pixel_are_drawn_without_complaint() -> None:
    size = (40, 40)
    dot = cells(size, (0, 0, 1, 1, 1, 1.0))
    empty = cells(size, (0, 0, 1, 1, 2, 1.0))
    empty.rles[0].update({"counts": b"Pb1"})  # one run of 40 * 40 background pixels
    picture = draw_overlay(grey_image(size), dot, empty, NAMES)
    assert has_color(picture_part(picture, "left"), class_color(1))
    assert not has_color(picture_part(picture, "right"), class_color(2))


def test_many_classes_wrap_in_the_legend_and_reuse_colors() -> None:
    size = (30, 30)
    nothing = Detections.empty(size)
    few = draw_overlay(grey_image(size), nothing, nothing, NAMES)
    many = draw_overlay(grey_image(size), nothing, nothing, [f"a class with a long name, {k}" for k in range(12)])
    assert many.shape[1] == few.shape[1]
    assert many.shape[0] > few.shape[0]
    assert class_color(len(PALETTE) + 1) == class_color(1)


def test_a_written_overlay_is_the_picture_as_png(tmp_path: Path) -> None:
    size = (30, 50)
    found = cells(size, (5, 5, 20, 20, 1, 0.9))
    write_overlay(tmp_path / "overlays/a.png", grey_image(size), found, found, NAMES)
    with Image.open(tmp_path / "overlays/a.png") as file:
        assert file.format == "PNG"
        np.testing.assert_array_equal(np.asarray(file), draw_overlay(grey_image(size), found, found, NAMES))
    assert [path.name for path in (tmp_path / "overlays").iterdir()] == ["a.png"]


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "overlays").write_text("a file, no folder")
    nothing = Detections.empty((30, 30))
    with pytest.raises(UserError, match="overlays"):
        write_overlay(tmp_path / "overlays/a.png", grey_image((30, 30)), nothing, nothing, NAMES)


def test_a_real_image_with_many_cells_is_drawn(shared_data: Path) -> None:
    folder = next(path.parent for path in sorted(shared_data.glob("nuclei/train/*/class1.tif")))
    image = np.ascontiguousarray(tifffile.imread(folder / "image.tif")[..., :3])
    ids = tifffile.imread(folder / "class1.tif")
    masks = [(ids == value, (0, 0), 1) for value in np.unique(ids) if value]
    truth = Detections.from_sample(Sample("real", image, *stack_masks(masks, *ids.shape)))
    picture = draw_overlay(image, truth, Detections.empty(truth.size), ["fluorescence"])
    assert len(truth) > 0
    assert has_color(picture_part(picture, "left"), class_color(1))
    assert not has_color(picture_part(picture, "right"), class_color(1))
