import itertools
from typing import Any

import numpy as np
import pytest

from cellseg.data.transforms import (
    FULL_STRENGTH,
    PROBABILITY,
    REPORTED,
    STAINS_33,
    STEPS,
    add_noise,
    albumentations_module,
    change_density,
    grid_positions,
    stain_change,
)

ONES, ZEROS = np.ones(3), np.zeros(3)


def every_color() -> np.ndarray:
    """An image of the corners and some inner points of the cube of colours."""
    return np.array([list(itertools.product((0, 1, 40, 128, 254, 255), repeat=3))], np.uint8)


def stained(density: np.ndarray) -> np.ndarray:
    """A pixel of so much haematoxylin, eosin and DAB."""
    stains_33 = STAINS_33 / np.linalg.norm(STAINS_33, axis=1, keepdims=True)
    return (np.exp(-density @ stains_33) * 256 - 1)[None, None]


def test_every_step_has_a_probability_and_no_reported_range_goes_beyond_full_strength():
    assert PROBABILITY.keys() == STEPS.keys()
    assert all(reach <= FULL_STRENGTH[name] for name, reach in REPORTED.items())


@pytest.mark.parametrize("grey", [False, True])
def test_stains_that_do_not_change_leave_every_colour_as_it_is(grey):
    assert np.array_equal(change_density(every_color(), stain_change(ONES, ZEROS, grey)), every_color())


@pytest.mark.parametrize("stain", range(3))
def test_a_stain_is_scaled_and_shifted_by_itself(stain):
    density = np.array([0.5, 0.4, 0.3])
    scales, shifts = ONES.copy(), ZEROS.copy()
    scales[stain], shifts[stain] = 1.3, 0.1
    expected = density.copy()
    expected[stain] = density[stain] * 1.3 + 0.1
    changed_HWC = change_density(np.rint(stained(density)).astype(np.uint8), stain_change(scales, shifts, False))
    np.testing.assert_allclose(changed_HWC, stained(expected), atol=2.5)


def test_grey_stays_grey_and_its_density_changes_by_the_mean():
    grey_HWC = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    changed_HWC = change_density(grey_HWC, stain_change(np.array([1.3, 1.1, 1.2]), ZEROS, True))
    expected_W = (256 * ((np.arange(256) + 1) / 256) ** 1.2 - 1).clip(min=0)
    np.testing.assert_allclose(changed_HWC[0], np.repeat(expected_W[:, None], 3, axis=1), atol=0.51)


def test_extreme_changes_keep_white_bright_black_dark_and_everything_in_range():
    corners = list(itertools.product((-1, 1), repeat=3))
    for scale_sign, shift_sign in itertools.product(corners, corners):
        scales = 1 + np.array(scale_sign) * FULL_STRENGTH["stain_scale"]
        change = stain_change(scales, np.array(shift_sign) * FULL_STRENGTH["stain_shift"], False)
        changed_HWC = change_density(every_color(), change)
        assert changed_HWC.dtype == np.uint8 and changed_HWC.shape == every_color().shape
        assert changed_HWC[0, 0].max() < 50
        assert changed_HWC[0, -1].min() > 200


@pytest.mark.parametrize("length", [1, 3, 5, 97, 480])
def test_a_grid_of_equal_cells_reads_every_pixel_where_it_is(length):
    np.testing.assert_allclose(grid_positions(length, np.full(5, 0.7)), np.arange(length), atol=1e-3)


def test_a_distorted_grid_never_folds_and_ends_where_the_image_does():
    rng = np.random.default_rng(0)
    for length in (2, 33, 100, 481):
        positions = grid_positions(length, 1 + rng.uniform(-FULL_STRENGTH["grid"], FULL_STRENGTH["grid"], 5))
        assert (np.diff(positions) > 0.3).all()
        assert -0.5 <= positions[0] < 0.5
        assert length - 1.5 < positions[-1] <= length - 0.5


def noisy(height: int = 61, width: int = 83) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("step", ["affine", "elastic", "grid", "noise"])
def test_what_is_made_quicker_gives_what_albumentations_gives(step):
    """Ours and the class it quickens, with the same numbers drawn."""
    ours = STEPS[step](albumentations_module(), FULL_STRENGTH)
    bases = type(ours).__mro__
    albumentations_class: Any = next(base for base in bases if base.__module__.startswith("albumentations."))
    image_HWC = noisy()
    mask_HW = np.random.default_rng(1).integers(0, 60_000, image_HWC.shape[:2], np.uint16)
    ours.fill = 200.0, 30.0, 90.0
    for seed in range(20):
        ours.set_random_seed(seed)
        ours(image=image_HWC, mask=mask_HW, force_apply=True)
        params = ours.get_applied_params()
        expected_HWC = albumentations_class.apply(ours, image_HWC, **params)
        assert not np.array_equal(expected_HWC, image_HWC)
        assert np.array_equal(ours.apply(image_HWC, **params), expected_HWC)
        if step != "noise":
            expected_HW = albumentations_class.apply_to_mask(ours, mask_HW, **params)
            assert np.array_equal(ours.apply_to_mask(mask_HW, **params), expected_HW)


def test_noise_is_cut_to_whole_numbers_and_the_sum_to_the_range_of_pixels():
    image_HWC = np.repeat(np.array([[[0], [100], [100], [250]]], np.uint8), 3, axis=2)
    noisy_HWC = add_noise(image_HWC, np.array([[-3.0, 1.9, -1.9, 80.0]], np.float32))
    assert noisy_HWC.dtype == np.uint8
    assert noisy_HWC[0, :, 0].tolist() == noisy_HWC[0, :, 2].tolist() == [0, 101, 99, 255]
