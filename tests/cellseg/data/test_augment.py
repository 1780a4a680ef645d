import os
import pickle
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from cellseg.config import AugmentConfig, TrialConfig
from cellseg.data.augment import PRESETS, Augmentation, background_color, build_augmentation, random_crop, turns_sides
from cellseg.data.loader import TrainingImages
from cellseg.data.planes import read_instances, stack_masks
from cellseg.data.sample import Sample

BIG = 40_000
"""Added to cell numbers: neither uint8 nor int16 holds them."""


def picture(height: int = 96, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Bright squares on a dark ground, and their two planes."""
    image_HWC = np.full((height, width, 3), 30, np.uint8)
    planes_PHW = np.zeros((2, height, width), np.uint16)
    for index, (top, left) in enumerate(np.ndindex(height // 24, width // 24)):
        window = slice(top * 24 + 4, top * 24 + 18), slice(left * 24 + 4, left * 24 + 18)
        image_HWC[window] = 220
        planes_PHW[(index % 2, *window)] = BIG + index
    return image_HWC, planes_PHW


def build(preset: str, strength: float = 1.0) -> Augmentation:
    return build_augmentation(AugmentConfig(preset=preset, strength=strength))


def test_every_preset_of_the_config_has_its_steps():
    assert tuple(PRESETS) == get_args(AugmentConfig.model_fields["preset"].annotation)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_keeps_form_and_brings_in_no_new_numbers(preset):
    image_HWC, planes_PHW = picture()
    before = image_HWC.copy(), planes_PHW.copy()
    augmentation = build(preset)
    for seed in range(12):
        changed_HWC, changed_PHW = augmentation(image_HWC, planes_PHW, seed)
        assert changed_HWC.dtype == np.uint8
        assert changed_PHW.dtype == np.uint16
        assert changed_HWC.shape[:2] == changed_PHW.shape[1:]
        assert sorted(changed_HWC.shape[:2]) == [96, 120]
        assert changed_HWC.flags.c_contiguous and changed_PHW.flags.c_contiguous
        for plane_HW, changed_HW in zip(planes_PHW, changed_PHW, strict=True):
            assert np.isin(changed_HW, plane_HW).all()
        assert changed_PHW.max() > BIG
    assert np.array_equal(image_HWC, before[0]) and np.array_equal(planes_PHW, before[1])


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "none"])
def test_the_result_depends_on_the_seed_alone(preset):
    first, second = build(preset), pickle.loads(pickle.dumps(build(preset)))
    results = {seed: first(*picture(), seed) for seed in range(10)}
    for seed in reversed(range(10)):
        for expected, got in zip(results[seed], second(*picture(), seed), strict=True):
            assert np.array_equal(expected, got)
    assert len({image_HWC.tobytes() for image_HWC, _ in results.values()}) > 4


def test_no_augmentation_changes_nothing():
    image_HWC, planes_PHW = picture()
    changed_HWC, changed_PHW = build("none")(image_HWC, planes_PHW, 3)
    assert np.array_equal(changed_HWC, image_HWC) and np.array_equal(changed_PHW, planes_PHW)


def test_flips_reach_all_eight_ways_and_move_the_image_with_its_planes():
    planes_PHW = np.arange(6, dtype=np.uint16).reshape(1, 2, 3)
    image_HWC = np.repeat(planes_PHW[0, ..., None], 3, axis=2).astype(np.uint8)
    seen = set()
    for seed in range(80):
        changed_HWC, changed_PHW = build("flips")(image_HWC, planes_PHW, seed)
        assert np.array_equal(changed_HWC[..., 0], changed_PHW[0])
        seen.add((changed_PHW.shape, changed_PHW.tobytes()))
    assert len(seen) == 8


def test_flips_turn_anticlockwise_and_then_mirror():
    image_HWC, planes_PHW = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8), picture()[1]
    for seed in range(40):
        rng = np.random.default_rng(seed)
        turns, mirrored = int(rng.integers(4)), rng.integers(2) == 1
        step = -1 if mirrored else 1
        changed_HWC, changed_PHW = build("flips")(image_HWC, planes_PHW, seed)
        assert np.array_equal(changed_HWC, np.rot90(image_HWC, turns)[:, ::step])
        assert np.array_equal(changed_PHW, np.rot90(planes_PHW, turns, axes=(1, 2))[:, :, ::step])


@pytest.mark.parametrize("preset", ["color", "stain", "focus", "blur", "noise"])
def test_a_change_of_colour_or_focus_moves_no_pixel_of_a_cell(preset):
    image_HWC, planes_PHW = picture()
    changed = 0
    for seed in range(12):
        expected_HWC, expected_PHW = build("flips")(image_HWC, planes_PHW, seed)
        changed_HWC, changed_PHW = build(preset)(image_HWC, planes_PHW, seed)
        assert np.array_equal(changed_PHW, expected_PHW)
        changed += not np.array_equal(changed_HWC, expected_HWC)
    assert 2 < changed < 12


@pytest.mark.parametrize("preset", ["reported-aug", "reported-elastic"])
def test_the_reported_pipelines_mirror_but_do_not_turn_and_have_one_strength(preset):
    image_HWC, planes_PHW = picture()
    planes_PHW = np.where(np.arange(120) < 60, planes_PHW > 0, planes_PHW * np.uint16(0)).astype(np.uint16)
    sides = []
    for seed in range(12):
        changed_HWC, changed_PHW = build(preset)(image_HWC, planes_PHW, seed)
        assert changed_HWC.shape == image_HWC.shape
        assert np.array_equal(changed_HWC, build(preset, 0.0)(image_HWC, planes_PHW, seed)[0])
        sides.append(np.nonzero(changed_PHW)[2].mean() < 60)
    assert {True, False} == set(sides)


def test_the_reported_pipelines_differ_by_the_elastic_deformation():
    image_HWC, planes_PHW = picture()
    plain, elastic = build("reported-aug"), build("reported-elastic")
    assert any(
        not np.array_equal(plain(image_HWC, planes_PHW, seed)[1], elastic(image_HWC, planes_PHW, seed)[1])
        for seed in range(4)
    )


@pytest.mark.parametrize("preset", ["geometric", "elastic", "grid"])
def test_image_and_planes_are_warped_alike(preset):
    augmentation = build(preset)
    for seed in range(12):
        changed_HWC, changed_PHW = augmentation(*picture(), seed)
        seen, cells = changed_HWC[..., 0] > 125, (changed_PHW > 0).any(axis=0)
        assert (seen & cells).sum() / (seen | cells).sum() > 0.9


def test_what_moves_in_from_outside_has_the_colour_of_the_background_and_no_cell():
    image_HWC = np.full((80, 80, 3), (200, 180, 190), np.uint8)
    planes_PHW = np.zeros((1, 80, 80), np.uint16)
    image_HWC[:25], planes_PHW[:, :25] = (90, 40, 120), 7  # a cell at the border: a reflection would double it
    for seed in range(12):
        changed_HWC, changed_PHW = build("geometric")(image_HWC, planes_PHW, seed)
        outside = changed_PHW[0] == 0
        assert np.abs(changed_HWC[outside].astype(int) - (200, 180, 190)).max(axis=1).mean() < 5
        assert (changed_HWC >= 39).all()


@pytest.mark.parametrize("preset", ["elastic", "grid"])
def test_cells_of_a_distorted_image_stay_in_one_piece_and_keep_their_size(preset):
    image_HWC, planes_PHW = picture()
    labels_N = np.ones(BIG + 100, np.int64)
    before = read_instances(planes_PHW, labels_N)
    areas = []
    for seed in range(12):
        after = read_instances(build(preset)(image_HWC, planes_PHW, seed)[1], labels_N)
        assert after.numbers_N.tolist() == before.numbers_N.tolist()
        sides_N2 = after.boxes_N4[:, 2:] - after.boxes_N4[:, :2]
        assert sides_N2.max() < 3 * 14
        areas.append(after.areas_N)
    assert np.mean(areas) == pytest.approx(before.areas_N.mean(), rel=0.15)


@pytest.mark.parametrize("preset", ["color", "stain", "noise", "full", "reported-elastic"])
def test_a_grey_image_stays_grey(preset):
    for seed in range(8):
        changed_HWC, _ = build(preset)(*picture(), seed)
        assert (changed_HWC.max(axis=2) - changed_HWC.min(axis=2)).max() <= 1


@pytest.mark.parametrize("preset", ["color", "stain", "focus", "blur", "noise"])
def test_strength_widens_the_change(preset):
    image_HWC, planes_PHW = picture()

    def change(strength: float) -> float:
        augmentation, flips = build(preset, strength), build("flips")
        pairs = ((augmentation(image_HWC, planes_PHW, s)[0], flips(image_HWC, planes_PHW, s)[0]) for s in range(15))
        return float(np.mean([np.abs(changed.astype(int) - expected).mean() for changed, expected in pairs]))

    assert 0 <= change(0.0) < change(1.0) / 4


@pytest.mark.parametrize("preset", ["geometric", "elastic", "grid"])
def test_strength_widens_the_movement(preset):
    image_HWC, planes_PHW = picture()

    def moved(strength: float) -> float:
        augmentation, flips = build(preset, strength), build("flips")
        pairs = ((augmentation(image_HWC, planes_PHW, s)[1], flips(image_HWC, planes_PHW, s)[1]) for s in range(15))
        return float(np.mean([(changed != expected).mean() for changed, expected in pairs]))

    assert 0 < moved(0.0) < moved(1.0) / 2


def test_steps_act_independently_of_each_other():
    flips, geometric, elastic, full = build("flips"), build("geometric"), build("elastic"), build("full")
    image_HWC, planes_PHW = picture()
    counts = []
    for augmentation in (geometric, elastic, full):
        moved = [
            not np.array_equal(augmentation(image_HWC, planes_PHW, s)[1], flips(image_HWC, planes_PHW, s)[1])
            for s in range(60)
        ]
        counts.append(sum(moved))
    # affine acts with 0.8, elastic with 0.5, one of the two with 0.9: more often than either alone
    assert counts[1] < counts[0] < 60
    assert counts[2] > counts[0]


def test_an_image_full_of_cells_still_has_a_fill_colour():
    image_HWC = np.full((16, 16, 3), (1, 2, 3), np.uint8)
    assert background_color(image_HWC, np.ones((1, 16, 16), np.uint16)) == (1.0, 2.0, 3.0)


def test_the_background_has_the_median_colour_of_the_pixels_without_cells():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image_HWC = rng.integers(0, 256, (*rng.integers(1, 60, 2), 3), np.uint8)
        planes_PHW = (rng.random((2, *image_HWC.shape[:2])) < 0.3).astype(np.uint16)
        bare = ~planes_PHW[:, ::4, ::4].any(axis=0)
        if bare.any():
            expected = np.median(image_HWC[::4, ::4][bare], axis=0)
            assert background_color(image_HWC, planes_PHW) == tuple(expected)


def overlapping_cells(seed: int) -> tuple[Sample, Sample]:
    """An image with ragged cells in as few planes as can be, and with a mask for each: a plane of its own."""
    rng = np.random.default_rng(seed)
    image_HWC = rng.integers(0, 256, (66, 78, 3), np.uint8)
    cells = [
        (rng.random(rng.integers(3, 20, 2)) < 0.9, (int(rng.integers(60)), int(rng.integers(70))), int(label))
        for label in rng.integers(1, 5, 25)
    ]
    planes_PHW, labels_N = stack_masks(cells, *image_HWC.shape[:2])
    numbers_N11 = np.arange(1, len(labels_N) + 1, dtype=np.uint16)[:, None, None]
    masks_NHW = (planes_PHW[:, None] == numbers_N11).any(axis=0)
    assert 1 < len(planes_PHW) < len(masks_NHW)
    return Sample("planes", image_HWC, planes_PHW, labels_N), Sample(
        "masks", image_HWC, masks_NHW * numbers_N11, labels_N
    )


@pytest.mark.parametrize("data", [{}, {"crop": 48, "train_scale_min": 0.5}, {"shorter_side": 90, "crop": 110}], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_boxes_labels_and_masks_of_planes_are_those_of_a_stack_of_masks_after_the_same_change(preset, data):
    config = TrialConfig.model_validate(
        {"augment": {"preset": preset, "min_visible": 0.0, "strength": 1.0}, "data": data}
    )
    for seed in range(4):
        planes, masks = (TrainingImages([sample], (0,), config) for sample in overlapping_cells(seed))
        for epoch in range(1, 4):
            image_CHW, target = planes[epoch, 0]
            stack_CHW, stack = masks[epoch, 0]
            masks_NHW = stack["planes"].numpy() > 0
            large_N = np.flatnonzero(masks_NHW.sum(axis=(1, 2)) >= 4)
            masks_KHW = masks_NHW[large_N]
            assert 0 < len(large_N) <= len(masks_NHW)
            assert np.array_equal(image_CHW, stack_CHW)
            of_cells = zip(target["plane"], target["number"], strict=True)
            assert np.array_equal([target["planes"][plane] == number for plane, number in of_cells], masks_KHW)
            assert np.array_equal(target["labels"], planes.data[0].labels_N[large_N])
            corners = [(*np.argwhere(mask_HW).min(axis=0), *np.argwhere(mask_HW).max(axis=0)) for mask_HW in masks_KHW]
            expected_N4 = [(left, top, right + 1, bottom + 1) for top, left, bottom, right in corners]
            assert np.array_equal(target["boxes"], expected_N4)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (33, 86)])
@pytest.mark.parametrize("preset", PRESETS)
def test_tiny_images_survive_every_preset(size, preset):
    image_HWC, planes_PHW = np.zeros((*size, 3), np.uint8), np.ones((1, *size), np.uint16)
    for seed in range(6):
        changed_HWC, changed_PHW = build(preset)(image_HWC, planes_PHW, seed)
        assert changed_HWC.shape[:2] == changed_PHW.shape[1:]


def test_importing_albumentations_asks_no_server_and_leaves_the_environment_alone():
    program = (
        "import os, urllib.request\n"
        "def refuse(*a, **k): raise SystemExit('asked the network')\n"
        "urllib.request.OpenerDirector.open = refuse\n"
        "from cellseg.config import AugmentConfig\n"
        "import cellseg.data.augment as augment, sys\n"
        "assert 'albumentations' not in sys.modules, 'imported too early'\n"
        "augment.build_augmentation(AugmentConfig(preset='color'))\n"
        "assert 'albumentations' in sys.modules and 'NO_ALBUMENTATIONS_UPDATE' not in os.environ\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_crop_shows_the_same_place_in_image_and_planes():
    planes_PHW = np.arange(40 * 50, dtype=np.uint16).reshape(1, 40, 50)
    image_HWC = np.repeat((planes_PHW[0] % 251)[..., None], 3, axis=2).astype(np.uint8)
    rng = np.random.default_rng(0)
    corners = set()
    for _ in range(30):
        crop_HWC, crop_PHW = random_crop(image_HWC, planes_PHW, 32, rng)
        assert crop_HWC.shape == (32, 32, 3) and crop_PHW.shape == (1, 32, 32)
        assert np.array_equal(crop_HWC[..., 0], crop_PHW[0] % 251)
        corners.add(int(crop_PHW[0, 0, 0]))
    assert len(corners) > 20


def test_a_crop_of_a_smaller_image_is_padded_with_its_background_at_bottom_and_right():
    image_HWC, planes_PHW = np.full((10, 40, 3), (210, 190, 200), np.uint8), np.zeros((2, 10, 40), np.uint16)
    image_HWC[:, :20], planes_PHW[:, :, :20] = 9, BIG
    crop_HWC, crop_PHW = random_crop(image_HWC, planes_PHW, 32, np.random.default_rng(0))
    left = int((crop_PHW[0, 0] == 0).argmax())  # cell columns that the crop shows
    assert 0 < left <= 20
    assert (crop_HWC[:10, :left] == 9).all() and (crop_PHW[:, :10, :left] == BIG).all()
    assert (crop_HWC[10:] == (210, 190, 200)).all() and (crop_PHW[:, 10:] == 0).all()
    assert crop_HWC.shape == (32, 32, 3) and crop_HWC.dtype == np.uint8
    assert crop_PHW.shape == (2, 32, 32) and crop_PHW.dtype == np.uint16


@pytest.mark.parametrize(("height", "width"), [(12, 40), (40, 12), (12, 12), (13, 12), (12, 13)])
def test_a_crop_reaches_every_place_of_the_image_along_both_sides(height, width):
    size, rng = 10, np.random.default_rng(0)
    planes_PHW = np.arange(height * width, dtype=np.uint16).reshape(1, height, width)
    image_HWC = np.zeros((height, width, 3), np.uint8)
    corners = [random_crop(image_HWC, planes_PHW, size, rng)[1][0, 0, 0] for _ in range(600)]
    tops, lefts = np.divmod(corners, width)
    assert set(tops) == set(range(height - size + 1))
    assert set(lefts) == set(range(width - size + 1))


@pytest.mark.parametrize("preset", ["geometric", "elastic", "full", "stain-full", "reported-elastic"])
def test_a_warped_crop_shows_the_image_and_not_what_lies_outside_of_it(preset):
    image_HWC, planes_PHW = np.full((400, 500, 3), 100, np.uint8), np.ones((1, 400, 500), np.uint16)
    augmentation = build(preset, 0.5)
    outside = []
    for seed in range(40):
        changed = augmentation.change(image_HWC, planes_PHW, seed, crop=96)
        assert changed.image_HWC.shape == (96, 96, 3) and changed.planes_PHW.shape == (1, 96, 96)
        assert changed.image_HWC.flags.c_contiguous and changed.planes_PHW.flags.c_contiguous
        outside.append((changed.planes_PHW == 0).mean())
    assert np.mean(outside) < 0.002 and max(outside) < 0.06, "an elastic deformation may reach over the image's edge"


@pytest.mark.parametrize("preset", ["flips", "geometric", "full"])
def test_crops_come_from_all_of_the_image(preset):
    planes_PHW = np.arange(1, 60 * 70 + 1, dtype=np.uint16).reshape(1, 60, 70)
    image_HWC = np.zeros((60, 70, 3), np.uint8)
    seen, augmentation = np.zeros(60 * 70 + 1, int), build(preset, 0.3)
    for seed in range(300):
        seen[np.unique(augmentation.change(image_HWC, planes_PHW, seed, crop=32).planes_PHW)] += 1
    seen_HW = seen[1:].reshape(60, 70)
    assert seen_HW.max(axis=0).min() > 0 and seen_HW.max(axis=1).min() > 0, "every row and column, the edges as well"
    assert seen_HW[30, 35] > 150


def test_a_crop_larger_than_the_image_shows_all_of_it():
    image_HWC, planes_PHW = picture(48, 48)
    areas = read_instances(planes_PHW, np.ones(BIG + 9, np.int64)).areas_N.sum()
    for seed in range(20):
        changed = build("geometric", 0.1).change(image_HWC, planes_PHW, seed, crop=120)
        assert changed.planes_PHW.astype(bool).sum() == pytest.approx(areas * changed.magnification, rel=0.12)


@pytest.mark.parametrize("crop", [None, 64])
def test_the_magnification_is_that_of_the_cells_areas(crop):
    image_HWC, planes_PHW = np.zeros((160, 200, 3), np.uint8), np.zeros((1, 160, 200), np.uint16)
    planes_PHW[0, 10:150, 10:190] = 1
    changed_by = set()
    for seed in range(20):
        changed = build("geometric").change(image_HWC, planes_PHW, seed, crop)
        changed_by.add(changed.magnification)
        if crop is None and changed.magnification < 0.5:  # all of it lies inside
            assert (changed.planes_PHW > 0).sum() == pytest.approx(140 * 180 * changed.magnification, rel=0.03)
    assert len(changed_by) > 10 and min(changed_by) < 0.5 < 2 < max(changed_by)
    assert build("color").change(image_HWC, planes_PHW, 0, crop).magnification == 1


def test_whether_an_image_is_turned_is_known_before():
    image_HWC, planes_PHW = picture(40, 60)
    for preset in PRESETS:
        config = AugmentConfig(preset=preset)
        for seed in range(12):
            changed_HWC, _ = build_augmentation(config)(image_HWC, planes_PHW, seed)
            assert (changed_HWC.shape[0] == 60) == turns_sides(config, seed)
