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


def drawn(step: str, image_HWC: np.ndarray, *only: str, count: int = 60) -> list[tuple[np.ndarray, dict]]:
    """The image changed by ``count`` seeds, with the numbers that were drawn.

    Every range has its full strength; with ``only``, those ranges have it and all others none.
    """
    reach = {name: limit if name in (only or FULL_STRENGTH) else 0.0 for name, limit in FULL_STRENGTH.items()}
    transform = STEPS[step](albumentations_module(), reach)
    transform.fill = 0.0
    results = []
    for seed in range(count):
        transform.set_random_seed(seed)
        changed_HWC = transform(image=image_HWC, force_apply=True)["image"]
        results.append((changed_HWC, transform.get_applied_params()))
    return results


def assert_both_sides(values, reach: float, name: str) -> None:
    """Values between -reach and reach, that come near to both and are balanced."""
    assert -reach <= min(values) < -0.8 * reach, name
    assert 0.8 * reach < max(values) <= reach, name
    assert abs(np.mean(values)) < 0.25 * reach, name


@pytest.mark.parametrize("name", ["rotate", "shear"])
def test_rotation_and_shear_go_either_way_as_far_as_the_reach(name):
    matrices = [params["matrix"] for _, params in drawn("affine", noisy(), name)]
    angles = [np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])) for matrix in matrices]
    assert_both_sides(angles, FULL_STRENGTH[name], name)


def test_sizes_grow_and_shrink_by_the_same_factor():
    factors = [np.sqrt(np.linalg.det(params["matrix"][:2, :2])) for _, params in drawn("affine", noisy(), "scale")]
    limit = 1 + FULL_STRENGTH["scale"]
    assert 1 / limit <= min(factors) < 1.1 / limit
    assert 0.9 * limit < max(factors) <= limit
    assert 15 < sum(factor < 1 for factor in factors) < 45, "as often smaller as larger"


def test_elastic_deformation_moves_points_either_way_along_both_axes():
    height, width = 61, 83
    shifts = {"x": [], "y": []}
    for _, params in drawn("elastic", noisy(height, width)):
        shifts["x"] += (params["map_x"] - np.arange(width)).ravel().tolist()
        shifts["y"] += (params["map_y"] - np.arange(height)[:, None]).ravel().tolist()
    for axis, values in shifts.items():
        assert abs(np.mean(values)) < 0.3, axis
        low, high = np.percentile(values, [1, 99])
        reach = FULL_STRENGTH["displacement"]  # at the knots; a smooth surface exceeds it a little between them
        assert -1.2 * reach < low < -0.6 * reach and 0.6 * reach < high < 1.2 * reach, axis


def test_a_grey_image_becomes_brighter_or_darker_by_up_to_the_reach():
    grey_HWC = np.full((8, 8, 3), 120, np.uint8)  # uniform: contrast, saturation and hue leave it as it is
    changes = [changed_HWC.mean() / 120 - 1 for changed_HWC, _ in drawn("color", grey_HWC)]
    assert_both_sides(changes, FULL_STRENGTH["brightness"] + 0.005, "brightness")


def test_contrast_saturation_and_hue_go_either_way_as_far_as_the_reach():
    dim, bright = (110, 100, 90), (150, 140, 130)
    image_HWC = np.array([[dim, bright] * 4], np.uint8)
    contrast = [np.ptp(changed_HWC[..., 1]) / 40 - 1 for changed_HWC, _ in drawn("color", image_HWC, "contrast")]
    assert_both_sides(contrast, FULL_STRENGTH["contrast"] + 0.025, "contrast")
    red_HWC = np.full((4, 4, 3), (180, 100, 100), np.uint8)
    saturation = [
        np.ptp(changed_HWC[0, 0].astype(int)) / 80 - 1 for changed_HWC, _ in drawn("color", red_HWC, "saturation")
    ]
    assert_both_sides(saturation, FULL_STRENGTH["saturation"] + 0.02, "saturation")
    # a sixth of the circle away from red, blue or green would be as strong
    turned = [changed_HWC[0, 0].astype(int) for changed_HWC, _ in drawn("color", red_HWC, "hue")]
    assert_both_sides([(green - blue) / 80 / 6 for _, green, blue in turned], FULL_STRENGTH["hue"] + 0.005, "hue")


def test_cells_of_a_grid_grow_and_shrink_along_both_axes():
    length, params_of = 60, [params for _, params in drawn("grid", noisy(60, 60))]
    for name, line in (("map_x", lambda params: params["map_x"][0]), ("map_y", lambda params: params["map_y"][:, 0])):
        first_cell = [(line(params)[11] - line(params)[0]) / 11 - 1 for params in params_of]
        assert -0.45 < min(first_cell) < -0.2 and 0.2 < max(first_cell) < 0.45, name
        assert all(abs(line(params)[-1] - (length - 1)) < 1 for params in params_of), name


@pytest.mark.parametrize("name", ["stain_scale", "stain_shift"])
def test_stains_gain_and_lose_density(name):
    flat_HWC = np.full((4, 4, 3), 100, np.uint8)
    levels = [changed_HWC.mean() for changed_HWC, _ in drawn("stain", flat_HWC, name, count=200)]
    assert min(levels) < 94 and max(levels) > 106
    assert abs(np.mean(levels) - 100) < 1.5
