import numpy as np
import pytest

from cellseg.data.planes import read_instances, stack_masks


def _square(size=3):
    return np.ones((size, size), bool)


def _pixels(planes_PHW, number):
    return (planes_PHW == number).any(axis=0)


def test_cells_that_do_not_overlap_share_a_plane():
    planes_PHW, labels_N = stack_masks([(_square(), (0, 0), 2), (_square(), (0, 3), 1)], 5, 8)
    assert planes_PHW.shape == (1, 5, 8)
    assert planes_PHW.dtype == np.uint16
    assert labels_N.tolist() == [2, 1]
    assert planes_PHW[0, 0].tolist() == [1, 1, 1, 2, 2, 2, 0, 0]


def test_overlapping_cells_keep_all_their_pixels_in_the_first_free_plane():
    masks = [(_square(), (0, 0), 1), (_square(), (1, 1), 1), (_square(), (2, 2), 1), (_square(), (4, 0), 1)]
    planes_PHW, _ = stack_masks(masks, 8, 8)
    assert [np.flatnonzero((planes_PHW == n).any(axis=(1, 2))).tolist() for n in (1, 2, 3, 4)] == [[0], [1], [2], [0]]
    for number, (_, (top, left), _) in enumerate(masks, start=1):
        truth_HW = np.zeros((8, 8), bool)
        truth_HW[top : top + 3, left : left + 3] = True
        np.testing.assert_array_equal(_pixels(planes_PHW, number), truth_HW)


def test_cells_whose_boxes_but_not_whose_pixels_overlap_share_a_plane():
    corner = np.tri(4, dtype=bool)
    planes_PHW, _ = stack_masks([(corner, (0, 0), 1), (~corner, (0, 0), 1)], 4, 4)
    assert planes_PHW.shape[0] == 1
    assert np.count_nonzero(planes_PHW) == 16


@pytest.mark.parametrize(
    ("corner", "area"),
    [((-1, -2), 6), ((3, 3), 9), ((4, 5), 4), ((-4, 0), 0), ((0, -4), 0), ((6, 0), 0), ((0, 7), 0), ((99, 99), 0)],
)
def test_parts_outside_the_image_are_cut_off(corner, area):
    mask_hw = np.zeros((4, 4), bool)
    mask_hw[:3, :4] = True
    mask_hw[3, 0] = False
    inside_HW = np.zeros((6, 7), bool)
    for y in range(4):
        for x in range(4):
            if mask_hw[y, x] and 0 <= y + corner[0] < 6 and 0 <= x + corner[1] < 7:
                inside_HW[y + corner[0], x + corner[1]] = True
    planes_PHW, labels_N = stack_masks([(mask_hw, corner, 3)], 6, 7)
    np.testing.assert_array_equal(planes_PHW[0] == 1, inside_HW)
    assert len(labels_N) == int(inside_HW.any())
    assert bool(area) == inside_HW.any()


def test_cells_without_a_pixel_take_no_number():
    empty = np.zeros((2, 2), bool)
    planes_PHW, labels_N = stack_masks([(empty, (0, 0), 9), (_square(), (0, 0), 4), (empty, (0, 0), 9)], 3, 3)
    assert labels_N.tolist() == [4]
    assert (planes_PHW == 1).all()


def test_no_cells_are_one_empty_plane():
    planes_PHW, labels_N = stack_masks([], 4, 5)
    assert planes_PHW.shape == (1, 4, 5)
    assert not planes_PHW.any()
    assert labels_N.dtype == np.int64
    cells = read_instances(planes_PHW, labels_N)
    assert cells.boxes_N4.shape == (0, 4)
    assert [len(values) for values in (cells.labels_N, cells.numbers_N, cells.plane_N, cells.areas_N)] == [0, 0, 0, 0]


def test_boxes_have_an_exclusive_right_and_bottom_edge():
    planes_PHW, labels_N = stack_masks([(np.ones((2, 5), bool), (3, 1), 7)], 9, 9)
    cells = read_instances(planes_PHW, labels_N)
    assert cells.boxes_N4.tolist() == [[1, 3, 6, 5]]
    assert cells.boxes_N4.dtype == np.float32
    assert cells.areas_N.tolist() == [10]
    assert cells.labels_N.tolist() == [7]


def test_instances_come_in_the_order_of_their_numbers_over_all_planes():
    masks = [(_square(), (0, 0), 5), (_square(), (1, 1), 6), (_square(), (4, 4), 7), (_square(), (5, 5), 8)]
    cells = read_instances(*stack_masks(masks, 9, 9))
    assert cells.numbers_N.tolist() == [1, 2, 3, 4]
    assert cells.labels_N.tolist() == [5, 6, 7, 8]
    assert cells.plane_N.tolist() == [0, 1, 0, 1]
    assert cells.boxes_N4[:, 0].tolist() == [0, 1, 4, 5]


def test_numbers_that_left_the_image_are_absent_and_the_others_keep_theirs():
    planes_PHW = np.zeros((2, 6, 6), np.uint16)
    planes_PHW[0, 2:4, 2:5] = 4
    planes_PHW[1, 0, 0] = 2
    cells = read_instances(planes_PHW, np.array([1, 2, 3, 4, 5]))
    assert cells.numbers_N.tolist() == [2, 4]
    assert cells.labels_N.tolist() == [2, 4]


@pytest.mark.parametrize(("min_area", "kept"), [(1, [1, 2]), (6, [1, 2]), (7, [2]), (10, [])])
def test_small_cells_are_left_out(min_area, kept):
    planes_PHW, labels_N = stack_masks([(np.ones((2, 3), bool), (0, 0), 1), (_square(), (3, 3), 1)], 6, 6)
    assert read_instances(planes_PHW, labels_N, min_area).numbers_N.tolist() == kept


def test_a_cell_in_two_pieces_is_one_instance_with_the_box_around_both():
    mask_hw = np.zeros((3, 8), bool)
    mask_hw[0, 0] = mask_hw[2, 7] = True
    cells = read_instances(*stack_masks([(mask_hw, (1, 1), 1)], 9, 9))
    assert cells.boxes_N4.tolist() == [[1, 1, 9, 4]]
    assert cells.areas_N.tolist() == [2]


def test_sixty_five_thousand_cells_fit():
    count = 65_535
    ids_HW = (np.arange(256 * 256) % (count + 1)).astype(np.uint16).reshape(1, 256, 256)
    cells = read_instances(ids_HW, np.ones(count, np.int64))
    assert len(cells.numbers_N) == count
    assert cells.numbers_N[-1] == count


def _read_one_by_one(planes_PHW, min_area):
    """(number, plane, box, area) of each cell, found by looking at each number's pixels."""
    cells = []
    for number in np.unique(planes_PHW[planes_PHW > 0]).tolist():
        for plane, plane_HW in enumerate(planes_PHW):
            y, x = np.nonzero(plane_HW == number)
            if len(y) >= max(min_area, 1):
                cells.append((number, plane, (x.min(), y.min(), x.max() + 1, y.max() + 1), len(y)))
    return cells


@pytest.mark.parametrize("min_area", [1, 4])
@pytest.mark.parametrize("largest", [3, 60, 65_535])
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 40), (3, 40, 1), (1, 23, 31), (3, 19, 27)])
def test_cells_are_those_found_by_looking_at_each_number(size, largest, min_area):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        blocks_PHW = rng.integers(0, largest, (size[0], -(-size[1] // 3), -(-size[2] // 3)), endpoint=True)
        planes_PHW = blocks_PHW.repeat(3, axis=1).repeat(3, axis=2)[:, : size[1], : size[2]].astype(np.uint16)
        planes_PHW[rng.random(size) < 0.5] = 0
        labels_N = rng.integers(1, 5, largest)
        expected = _read_one_by_one(planes_PHW, min_area)
        cells = read_instances(planes_PHW, labels_N, min_area)
        assert cells.numbers_N.tolist() == [number for number, *_ in expected]
        assert cells.plane_N.tolist() == [plane for _, plane, *_ in expected]
        assert cells.boxes_N4.tolist() == [list(box) for *_, box, _ in expected]
        assert cells.areas_N.tolist() == [area for *_, area in expected]
        assert cells.labels_N.tolist() == [labels_N[number - 1] for number, *_ in expected]
        int64s = cells.numbers_N, cells.plane_N, cells.areas_N, cells.labels_N
        assert cells.boxes_N4.dtype == np.float32 and {values.dtype for values in int64s} == {np.dtype(np.int64)}


def test_a_view_of_planes_is_read_like_a_copy():
    planes_PHW = np.random.default_rng(0).integers(0, 9, (2, 12, 14)).astype(np.uint16)
    view_PHW = planes_PHW[:, 2:-1, 12:1:-2]
    view, copy = (read_instances(planes, np.ones(9)) for planes in (view_PHW, view_PHW.copy()))
    assert all(np.array_equal(getattr(view, name), getattr(copy, name)) for name in view.__slots__)
