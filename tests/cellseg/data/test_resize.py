import cv2
import numpy as np
import pytest

from cellseg.config import DataConfig
from cellseg.data.resize import SMALLEST_SIDE, multiply_size, resize_image, resize_planes, scaled_size, to_color


@pytest.mark.parametrize(
    "size, settings, expected",
    [
        pytest.param((400, 480), {}, (400, 480), id="native size"),
        pytest.param((2150, 1401), {}, (1333, 869), id="native size, but too long"),
        pytest.param((400, 480), {"shorter_side": 800}, (800, 960), id="grows"),
        pytest.param((480, 400), {"shorter_side": 200}, (240, 200), id="shrinks"),
        pytest.param((400, 800), {"shorter_side": 800, "longer_side": 1000}, (500, 1000), id="longer side wins"),
        pytest.param((33, 86), {"shorter_side": 512}, (512, 1333), id="smallest real image"),
        pytest.param((1, 5000), {"longer_side": 32}, (1, 32), id="never below one pixel"),
        pytest.param((64, 64), {"shorter_side": 64, "longer_side": 64}, (64, 64), id="square image"),
        pytest.param((400, 900), {"shorter_side": 512, "resize": "square"}, (512, 512), id="distorted"),
        pytest.param((40, 9), {"shorter_side": 512, "longer_side": 32, "resize": "square"}, (512, 512), id="no limit"),
    ],
)
def test_scaled_size_follows_shorter_side_unless_longer_side_forbids(size, settings, expected):
    assert scaled_size(*size, DataConfig(**settings)) == expected


def test_scaled_size_keeps_both_laws_for_any_image():
    rng = np.random.default_rng(0)
    data = DataConfig(shorter_side=300, longer_side=700)
    for height, width in rng.integers(1, 3000, (200, 2)):
        new_height, new_width = scaled_size(int(height), int(width), data)
        assert max(new_height, new_width) <= 700
        assert min(new_height, new_width) <= 300
        assert 300 in (new_height, new_width) or 700 in (new_height, new_width)
        assert min(new_height, new_width) >= 1


@pytest.mark.parametrize(
    "size, factor, expected",
    [
        ((400, 480), 1.0, (400, 480)),
        ((400, 480), 0.5, (200, 240)),
        ((101, 480), 0.75, (76, 360)),
        ((800, 1333), 1.25, (1000, 1666)),  # longer_side is no limit
        ((33, 86), 0.1, (SMALLEST_SIDE, 9)),
        ((5, 1), 0.5, (5, 1)),
        ((5, 1), 2.0, (10, 2)),
    ],
)
def test_a_factor_scales_both_sides_and_leaves_a_few_pixels(size, factor, expected):
    assert multiply_size(size, factor) == expected


def test_nothing_is_copied_at_the_own_size():
    image_HWC, planes_PHW = np.zeros((5, 6, 3), np.uint8), np.zeros((1, 5, 6), np.uint16)
    assert resize_image(image_HWC, (5, 6)) is image_HWC
    assert resize_planes(planes_PHW, (5, 6)) is planes_PHW


def test_shrinking_an_image_averages_it():
    stripes = np.zeros((8, 12, 3), np.uint8)
    stripes[:, ::4] = 200  # linear interpolation between the middle ones of four pixels would give 0
    assert (resize_image(stripes, (2, 3)) == 50).all()


def test_growing_an_image_interpolates_linearly():
    image_HWC = np.zeros((1, 2, 3), np.uint8)
    image_HWC[:, 1] = 100
    assert resize_image(image_HWC, (2, 4))[0, :, 0].tolist() == [0, 25, 75, 100]


def test_shrinking_along_one_side_averages_there_and_growing_along_the_other_interpolates():
    image_HWC = np.zeros((8, 2, 3), np.uint8)
    image_HWC[::2, 1] = 200
    assert resize_image(image_HWC, (4, 4))[..., 0].tolist() == [[0, 25, 75, 100]] * 4
    assert np.array_equal(
        resize_image(image_HWC.transpose(1, 0, 2), (4, 4)), resize_image(image_HWC, (4, 4)).transpose(1, 0, 2)
    )


@pytest.mark.parametrize("size", [(4, 5), (20, 7), (13, 31), (1, 1)])
def test_planes_take_the_pixel_under_the_new_pixels_centre(size):
    planes_PHW = np.random.default_rng(0).integers(0, 65536, (2, 13, 17)).astype(np.uint16)
    expected = np.empty((2, *size), np.uint16)
    for row, column in np.ndindex(size):
        expected[:, row, column] = planes_PHW[:, int((row + 0.5) * 13 / size[0]), int((column + 0.5) * 17 / size[1])]
    resized = resize_planes(planes_PHW, size)
    assert resized.dtype == np.uint16
    assert np.array_equal(resized, expected)


@pytest.mark.parametrize("size", [(50, 60), (170, 190), (300, 200)])
def test_planes_and_image_keep_lying_on_each_other(size):
    disc_HW = np.hypot(*(np.mgrid[:100, :120] - [[[40]], [[70]]])) < 25
    image_HWC = np.repeat(disc_HW[..., None] * np.uint8(255), 3, axis=2)
    planes_PHW = disc_HW[None].astype(np.uint16) * 40000
    seen = resize_image(image_HWC, size)[..., 0] > 127
    cell = resize_planes(planes_PHW, size)[0] == 40000
    # half a pixel of the old image is what nearest neighbour may cost at the edge
    assert (seen & cell).sum() / (seen | cell).sum() > 0.95


def test_grey_is_luminance_in_three_channels_and_rgb_is_left_alone():
    image_HWC = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    grey_HWC = to_color(image_HWC, "grey")
    luminance_HW = image_HWC @ np.array([0.299, 0.587, 0.114])
    assert grey_HWC.dtype == np.uint8
    assert np.abs(grey_HWC - luminance_HW[..., None]).max() <= 1
    assert to_color(image_HWC, "rgb") is image_HWC
    assert cv2.cvtColor(grey_HWC, cv2.COLOR_RGB2GRAY).tolist() == grey_HWC[..., 0].tolist()


def test_shrinking_weighs_each_pixel_by_the_area_that_it_covers():
    image_HWC = np.random.default_rng(0).integers(0, 256, (10, 25, 3), dtype=np.uint8)
    # Each new pixel covers 5/3 x 5/2 old ones: repeat pixels until both grids are whole, then average.
    fine_HWC = image_HWC.repeat(3, axis=0).repeat(2, axis=1).astype(float)
    expected_HWC = fine_HWC.reshape(6, 5, 10, 5, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(image_HWC, (6, 10)) - expected_HWC).max() <= 0.51
