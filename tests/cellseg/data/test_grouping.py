"""Batches of images of like size: little padding, every image once, and chance as far as sizes leave room for it."""

from collections import Counter

import numpy as np
import pytest

from cellseg.data.grouping import WASTE_AIM, batch_pixels, group_batches, waste

NUCLEI = {(256, 320): 64, (256, 256): 56, (360, 360): 18, (520, 696): 16, (1024, 1024): 8, (512, 640): 4, (260, 347): 1}
"""Sizes of the training images of a public data set of nuclei, and how many there are of each."""


def turned(counts: dict[tuple[int, int], int], rng: np.random.Generator) -> np.ndarray:
    """(N, 2) sizes, of which every other one by chance lies on its side."""
    sizes = np.array([size for size, count in counts.items() for _ in range(count)])
    on_side = rng.random(len(sizes)) < 0.5
    sizes[on_side] = sizes[on_side, ::-1]
    return sizes


def plain(count: int, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    order = rng.permutation(count).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def test_a_batch_is_as_large_as_its_highest_and_its_widest_image():
    assert batch_pixels(np.array([[32, 32]])) == 32 * 32
    assert batch_pixels(np.array([[10, 65], [40, 20]])) == 2 * 64 * 96
    assert batch_pixels(np.zeros((0, 2))) == 0
    assert waste([[0], [1]], np.array([[10, 65], [40, 20]])) == 1
    assert waste([[0, 1]], np.array([[32, 64], [64, 32]])) == 2


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("count", [1, 5, 8, 63, 167])
def test_every_image_comes_once_in_full_batches_but_the_last(count, batch_size):
    rng = np.random.default_rng(count)
    shapes_N2 = rng.integers(20, 900, (count, 2))
    batches = group_batches(shapes_N2, batch_size, rng)
    assert sorted(image for batch in batches for image in batch) == list(range(count))
    assert len(batches) == -(-count // batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@pytest.mark.parametrize(("batch_size", "shuffled", "grouped"), [(2, 1.4, 1.05), (4, 2.0, 1.06), (8, 3.0, 1.1)])
def test_images_of_many_sizes_are_hardly_padded(batch_size, shuffled, grouped):
    before, after = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shapes_N2 = turned(NUCLEI, rng)
        before.append(waste(plain(len(shapes_N2), batch_size, rng), shapes_N2))
        after.append(waste(group_batches(shapes_N2, batch_size, rng), shapes_N2))
    assert np.mean(before) > shuffled
    assert np.mean(after) < grouped


def test_images_of_one_size_are_shuffled_as_if_there_were_no_groups():
    shapes_N2 = np.full((30, 2), 64)
    expected = plain(30, 4, np.random.default_rng(3))
    assert group_batches(shapes_N2, 4, np.random.default_rng(3)) == expected


def test_the_same_generator_gives_the_same_batches_and_another_gives_others():
    shapes_N2 = turned(NUCLEI, np.random.default_rng(0))
    once, again, other = (group_batches(shapes_N2, 4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert once == again != other
    assert {frozenset(batch) for batch in once} != {frozenset(batch) for batch in other}


def test_every_size_comes_early_and_late_and_images_change_their_company():
    shapes_N2 = np.repeat([[256, 256], [512, 512], [512, 640], [640, 512]], 16, axis=0)
    places, company = Counter(), Counter()
    for seed in range(200):
        batches = group_batches(shapes_N2, 4, np.random.default_rng(seed))
        assert waste(batches, shapes_N2) <= WASTE_AIM
        for place, batch in enumerate(batches):
            places[(place < len(batches) / 2, batch[0] // 16)] += 1
            company.update((0, image) for image in batch if 0 in batch and image != 0)
    early = np.array([places[True, kind] for kind in range(4)])
    late = np.array([places[False, kind] for kind in range(4)])
    assert np.abs(early - late).max() < 0.15 * (early + late).min()
    assert len(company) == 15, "an image meets all of its size"


def test_the_partial_batch_is_of_many_sizes():
    kinds = Counter()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shapes_N2 = turned(NUCLEI, rng)
        last = group_batches(shapes_N2, 4, rng)[-1]
        assert len(last) == 3
        kinds.update(tuple(sorted(shapes_N2[image].tolist())) for image in last)
    assert len(kinds) >= 4
    assert max(kinds.values()) < 80, "two thirds of the 120"


def test_grouping_thousands_of_images_takes_a_moment():
    rng = np.random.default_rng(0)
    shapes_N2 = rng.integers(200, 1200, (5000, 2))
    assert waste(group_batches(shapes_N2, 8, rng), shapes_N2) < 1.15
