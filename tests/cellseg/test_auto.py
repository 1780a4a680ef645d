import numpy as np
import pytest

from cellseg.auto import anchors_for, cell_sides, detections_for, resolve_auto
from cellseg.config import DataConfig, parse_anchor_range


class FakeData:
    """Boxes and labels of images, as PackedDataset gives them."""

    def __init__(self, sizes, boxes):
        self.sizes = np.array(sizes)
        self._boxes = [np.asarray(image, np.float32).reshape(-1, 4) for image in boxes]

    def __len__(self):
        return len(self._boxes)

    def boxes(self, index):
        return self._boxes[index]

    def labels(self, index):
        return np.ones(len(self._boxes[index]), np.int64)


@pytest.mark.parametrize(
    ("sides", "anchors"),
    [
        ([16.0] * 10, "16-256"),
        ([16.0] + [100.0] * 99, "32-512"),  # one small cell in a hundred does not decide
        ([16.0] * 20 + [100.0] * 80, "16-256"),
        ([11.0], "8-128"),  # below the geometric mean of 8 and 16
        ([12.0], "16-256"),
        ([1.0], "2-32"),
        ([0.3], "2-32"),
        ([900.0], "32-512"),
        ([], "32-512"),
    ],
)
def test_anchors_start_at_the_power_of_two_nearest_to_the_small_cells(sides, anchors):
    assert anchors_for(np.array(sides)) == anchors
    assert len(parse_anchor_range(anchors)) == 5


def test_sides_are_measured_at_the_scale_the_network_sees():
    data = FakeData([(100, 200), (50, 50)], [[(0, 0, 10, 40), (5, 5, 15, 15)], [(0, 0, 8, 8)]])
    assert cell_sides(data, DataConfig()).tolist() == [20, 10, 8]
    assert cell_sides(data, DataConfig(shorter_side=200)).tolist() == [40, 20, 32]
    assert cell_sides(data, DataConfig(longer_side=100)).tolist() == [10, 5, 8]


def test_images_without_cells_have_no_sides():
    assert cell_sides(FakeData([(9, 9)], [[]]), DataConfig()).tolist() == []


@pytest.mark.parametrize(("cells", "most"), [([0], 100), ([3, 50], 100), ([51, 3], 102), ([161], 322)])
def test_detections_are_twice_the_most_cells_and_at_least_100(cells, most):
    data = FakeData([(9, 9)] * len(cells), [[(0, 0, 1, 1)] * count for count in cells])
    assert detections_for(data) == most


def test_resolving_leaves_no_auto_that_depends_on_the_data(packed, tiny_config):
    config = resolve_auto(tiny_config(model__anchors="auto", model__detections_per_image="auto"), packed)
    assert config.model.anchors == anchors_for(cell_sides(packed, config.data))
    assert config.model.detections_per_image == 100


def test_what_was_set_by_hand_stays(packed, tiny_config):
    config = tiny_config(model__anchors="8-128", model__detections_per_image=7)
    assert resolve_auto(config, packed) == config
