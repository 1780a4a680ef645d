import numpy as np
import pytest

from cellseg.data.statistics import DataStatistics, count_labels

NAMES = ("round", "spindle", "rare")


def _boxes(*sides):
    return np.array([[3, 4, 3 + w, 4 + h] for w, h in sides], np.float32).reshape(-1, 4)


@pytest.fixture
def statistics():
    return DataStatistics.collect(
        boxes=[_boxes((8, 2), (16, 16), (9, 4)), _boxes(), _boxes((10, 10))],
        labels=[np.array([1, 1, 2]), np.zeros(0, np.int64), np.array([1])],
        sizes=[(100, 200), (50, 60), (300, 20)],
        class_names=NAMES,
    )


def test_images_and_cells_are_counted(statistics):
    assert (statistics.images, statistics.empty_images, statistics.cells, statistics.most_cells) == (3, 1, 4, 3)
    assert statistics.cells_per_class == (3, 1, 0)
    assert statistics.images_per_class == (2, 1, 0)


def test_quantiles_run_from_the_least_to_the_most(statistics):
    assert (statistics.heights[0], statistics.heights[2], statistics.heights[-1]) == (50, 100, 300)
    assert (statistics.widths[0], statistics.widths[2], statistics.widths[-1]) == (20, 60, 200)
    assert (statistics.cells_per_image[0], statistics.cells_per_image[2], statistics.cells_per_image[-1]) == (0, 1, 3)
    assert (statistics.box_sides[0], statistics.box_sides[2], statistics.box_sides[-1]) == (4, 8, 16)


def test_the_description_names_every_class_and_warns_of_absent_ones(statistics):
    text = "\n".join(statistics.describe())
    assert "3, 1 of them without cells" in text
    assert "round          3 in 2 images" in text
    assert "spindle        1 in 1 image\n" in text
    assert "there is no cell of rare" in text
    assert "detections_per_image" not in text


def test_dense_images_ask_for_more_detections():
    dense = DataStatistics.collect([_boxes(*[(12, 12)] * 161)], [np.ones(161, int)], [(99, 99)], ("cell",))
    text = "\n".join(dense.describe())
    assert "one image holds 161 cells" in text
    assert dense.anchors == "16-256"
    assert "model.anchors '16-256'" in text


def test_the_anchors_coverage_is_told_for_the_suggestion_and_its_neighbours():
    boxes = np.array([[120, 120, 136, 136], [124, 124, 140, 140], [120, 120, 136, 136], [10, 10, 12, 12]], np.float32)
    found = DataStatistics.collect([boxes[:3], boxes[3:]], [np.ones(3, int), np.ones(1, int)], [(256, 256)] * 2, ("c",))
    assert found.anchors == "8-128"
    assert list(found.coverage) == ["8-128", "4-64", "16-256", "8-512"]
    assert found.coverage["8-128"] == (0.5, 0.5)
    assert found.coverage["8-512"] == (0.75, 0.75)
    lines = found.describe()
    line = "anchor coverage  8-128: 50% of the cells have an anchor of IoU >= 0.5, 50% one of IoU >= 0.7"
    assert line in lines
    assert lines[lines.index(line) + 1].endswith("16-256 75% and 75%, 8-512 75% and 75%")


def test_anchors_are_judged_at_the_scale_of_the_network():
    boxes, labels = np.array([[320.0, 320, 384, 384]]), [np.ones(1, int)]
    same = DataStatistics.collect([boxes / 4], labels, [(1000, 1333)], ("cell",))
    large = DataStatistics.collect([boxes], labels, [(4000, 5332)], ("cell",))
    assert large.box_sides[2] == 64
    assert same.anchors == large.anchors == "16-256"
    assert large.coverage == same.coverage
    assert large.coverage["16-256"] == (1.0, 1.0)


def test_images_without_any_cell_are_described_too():
    empty = DataStatistics.collect([_boxes()], [np.zeros(0, int)], [(9, 9)], ("cell",))
    assert empty.box_sides is None
    assert empty.anchors is None
    assert empty.coverage == {}
    assert "cells            0" in empty.describe()


def test_labels_are_counted_per_image_and_class():
    assert count_labels([np.array([3, 1, 3]), np.zeros(0, int)], 3).tolist() == [[1, 0, 2], [0, 0, 0]]
    assert count_labels([], 2).shape == (0, 2)
