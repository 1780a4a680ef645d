import time

import numpy as np
import pytest
import tifffile

from cellseg.config import DataConfig
from cellseg.data.dataset import open_dataset
from cellseg.data.planes import stack_masks
from cellseg.data.release import merge_class_maps
from cellseg.errors import UserError

IMAGE = np.zeros((12, 16, 3), np.uint8)


def _one(root, **settings):
    (source,) = open_dataset(DataConfig(root=str(root), **settings)).sources
    return source


def _map(*boxes):
    """A 12 x 16 map with value ``id`` in rows and columns [y1, y2), [x1, x2)."""
    ids_HW = np.zeros((12, 16), np.int64)
    for number, y1, y2, x1, x2 in boxes:
        ids_HW[y1:y2, x1:x2] = number
    return ids_HW


def test_cells_are_numbered_class_by_class_and_touching_cells_stay_apart(make_release):
    sample = open_dataset(DataConfig(root=str(make_release()))).sources[0].load()
    assert sample.name == "s0"
    assert sample.labels_N.tolist() == [1, 3, 3]
    assert sample.planes_PHW.dtype == np.uint16
    assert sample.planes_PHW.shape == (1, 24, 30)
    assert [np.count_nonzero(sample.planes_PHW == n) for n in (1, 2, 3)] == [36, 50, 60]


def test_there_are_as_many_classes_as_the_largest_class_of_any_sample(make_release):
    root = make_release()
    (root / "train" / "s0" / "class3.tif").unlink()
    assert open_dataset(DataConfig(root=str(root))).class_names == ("class1", "class2", "class3")


def test_an_image_without_class_maps_is_a_sample_without_cells(tmp_path, write_sample):
    write_sample(tmp_path / "train" / "a", IMAGE, {})
    sample = _one(tmp_path).load()
    assert sample.labels_N.shape == (0,)
    assert sample.planes_PHW.shape == (1, 12, 16)
    assert not sample.planes_PHW.any()


def test_overlapping_cells_of_two_classes_keep_all_their_pixels(tmp_path, write_sample):
    first, second = _map((5, 0, 6, 0, 8)), _map((5, 4, 9, 4, 12), (9, 10, 12, 0, 3))
    write_sample(tmp_path / "train" / "a", IMAGE, {1: first, 2: second})
    sample = _one(tmp_path).load()
    assert sample.planes_PHW.shape[0] == 2
    assert sample.labels_N.tolist() == [1, 2, 2]
    for number, truth_HW in ((1, first == 5), (2, second == 5), (3, second == 9)):
        np.testing.assert_array_equal((sample.planes_PHW == number).any(axis=0), truth_HW)


def test_components_split_a_binary_mask_with_diagonal_neighbours_joined(tmp_path, write_sample):
    mask = _map((255, 0, 3, 0, 3), (255, 3, 5, 3, 5), (255, 8, 10, 8, 10))
    write_sample(tmp_path / "train" / "a", IMAGE, {1: mask})
    assert len(_one(tmp_path, instances="components").load().labels_N) == 2
    assert len(_one(tmp_path, instances="ids").load().labels_N) == 1


@pytest.mark.parametrize("largest_id", [20, 10**12])
def test_merging_maps_equals_stacking_their_cells_one_by_one(largest_id):
    rng = np.random.default_rng(largest_id % 97)
    maps = []
    for label in (1, 2, 4):
        ids_HW = np.zeros((40, 50), np.int64)
        for number in rng.integers(1, largest_id, 12):
            y, x = rng.integers(0, 40), rng.integers(0, 50)
            ids_HW[y : y + 9, x : x + 7] = number
        maps.append((label, ids_HW))
    planes_PHW, labels_N = merge_class_maps(maps, (40, 50), "ids")
    cells = ((m == number, (0, 0), label) for label, m in maps for number in np.unique(m[m > 0]))
    expected_planes, expected_labels = stack_masks(cells, 40, 50)
    np.testing.assert_array_equal(planes_PHW, expected_planes)
    np.testing.assert_array_equal(labels_N, expected_labels)
    assert len(planes_PHW) > 1


def test_a_map_without_background_is_one_cell():
    for number in (1, 10**9):
        planes_PHW, labels_N = merge_class_maps([(2, np.full((4, 5), number))], (4, 5), "ids")
        assert labels_N.tolist() == [2]
        assert (planes_PHW == 1).all()


def test_two_thousand_cells_are_merged_in_a_fraction_of_a_second():
    tiles = np.kron(np.arange(1, 2501).reshape(50, 50) * 3, np.ones((40, 40), np.int64))
    tiles[::40], tiles[:, ::40] = 0, 0
    start = time.perf_counter()
    _, labels_N = merge_class_maps([(1, tiles), (2, np.roll(tiles, 20, axis=1))], (2000, 2000), "ids")
    assert time.perf_counter() - start < 2  # 0.2 s on an idle machine
    assert len(labels_N) >= 5000


def test_more_cells_than_numbers_are_refused(tmp_path, write_sample):
    ids_HW = np.arange(300 * 300).reshape(300, 300)
    write_sample(tmp_path / "train" / "a", np.zeros((300, 300, 3), np.uint8), {1: ids_HW})
    with pytest.raises(UserError, match=r"a: an image must have at most 65535 cells, but got 89999"):
        _one(tmp_path).load()


def test_all_problems_of_a_sample_are_told_at_once(tmp_path, write_sample):
    folder = tmp_path / "train" / "a"
    write_sample(folder, IMAGE, {1: np.full((12, 16), 0.5), 2: np.zeros((12, 15)), 3: np.zeros((12, 16))})
    tifffile.imwrite(folder / "class3.tiff", np.zeros((12, 16)))
    tifffile.imwrite(folder / "class0.tif", np.zeros((12, 16)))
    with pytest.raises(UserError) as caught:
        _one(tmp_path).load()
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "class1.tif: ids must be whole numbers" in text
    assert "class2.tif: must have the size of its image, 12 x 16, but got 12 x 15." in text
    assert "a class must have one map, but got class3.tif and class3.tiff" in text
    assert "a class map must be named classK.tif" in text


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ([], "must hold one file image.tif .*, but got none"),
        (["image.tif", "IMAGE.TIFF"], "but got IMAGE.TIFF and image.tif"),
    ],
)
def test_a_sample_folder_holds_exactly_one_image(make_release, files, match):
    folder = make_release() / "train" / "s9"
    folder.mkdir()
    for name in files:
        tifffile.imwrite(folder / name, IMAGE, photometric="rgb")
    with pytest.raises(UserError, match=match):
        open_dataset(DataConfig(root=str(folder.parent.parent))).sources[-1].load()


def test_suffixes_may_be_in_capitals(make_release):
    root = make_release(samples=1)
    for path in (root / "train" / "s0").iterdir():
        path.rename(path.with_suffix(".TIF"))
    assert len(_one(root).load().labels_N) == 3


def test_stray_files_are_noted_and_hidden_ones_are_not(make_release):
    root = make_release()
    for name in ("s0/notes.txt", "s1/overview.tif", "readme.md", ".DS_Store"):
        (root / "train" / name).write_text("x")
    notes = open_dataset(DataConfig(root=str(root))).notes
    assert [note.split(": ")[0].split("train/")[1] for note in notes] == [
        "readme.md",
        "s0/notes.txt",
        "s1/overview.tif",
    ]


def test_the_released_sample_has_161_cells(shared_data):
    sample = _one(shared_data / "hw3-sample").load()
    assert sample.size == (397, 482)
    assert np.bincount(sample.labels_N).tolist() == [0, 2, 159]
    assert len(np.unique(sample.planes_PHW)) == 162
