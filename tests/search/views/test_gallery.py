"""Which validation images are shown. The pictures themselves are part of the whole run in test_run.py."""

from types import SimpleNamespace

import numpy as np
import pytest

from search.views.gallery import MAX_PIXELS, NUM_PICTURES, _choose, _plain


def data(cells: list[int], side: int | list[int] = 100):
    sides = np.broadcast_to(side, len(cells))
    return SimpleNamespace(sizes=np.stack([sides, sides], axis=1), labels=lambda index: np.ones(cells[index]))


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 12, 50])
def test_up_to_six_different_images_ordered_by_their_cells(count):
    cells = list(np.random.default_rng(count).permutation(count))
    chosen = _choose(data(cells), tuple(range(count)))
    assert len(chosen) == len(set(chosen)) == min(count, NUM_PICTURES)
    shown = [cells[index] for index in chosen]
    assert shown == sorted(shown)


def test_only_validation_images_are_shown():
    assert set(_choose(data([5] * 20), (3, 4, 11))) == {3, 4, 11}


def test_huge_images_are_left_out_while_there_are_others():
    huge = int(MAX_PIXELS**0.5) + 1
    assert _choose(data([1, 2, 3], [huge, 100, huge]), (0, 1, 2)) == [1]
    assert _choose(data([1, 2], huge), (0, 1)) == [0, 1]


@pytest.mark.parametrize("name", ["a", "sub/a", "../../secret", "/etc/secret", "..\\secret", "a/../../../b"])
def test_a_picture_stays_in_its_folder_whatever_its_image_is_called(name, tmp_path):
    picture = (tmp_path / f"{_plain(name)}.png").resolve()
    assert picture.is_relative_to(tmp_path.resolve())
    assert picture.stem.endswith(name.split("/")[-1].split("\\")[-1])
