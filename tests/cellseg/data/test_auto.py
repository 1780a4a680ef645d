import numpy as np
import pytest

from cellseg.config import DataConfig, parse_anchor_range, parse_normalization
from cellseg.data.auto import (
    PIXELS_PER_IMAGE,
    anchors_for,
    candidates_for,
    cell_sides,
    detections_for,
    normalization_for,
    proposals_for,
    resolve_auto,
)
from cellseg.data.sample import Sample
from cellseg.data.split import split
from cellseg.errors import UserError


class FakeData:
    """Boxes of images of one class, as PackedDataset gives them."""

    def __init__(self, sizes, boxes):
        self.sizes = np.array(sizes)
        self._boxes = [np.asarray(image, np.float32).reshape(-1, 4) for image in boxes]

    def __len__(self):
        return len(self._boxes)

    def boxes(self, index):
        return self._boxes[index]

    @property
    def label_counts(self):
        return np.array([[len(boxes_N4)] for boxes_N4 in self._boxes])


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
    assert cell_sides(data, DataConfig(shorter_side=200, train_scale_min=0.5)).tolist() == [40, 20, 32]


def test_the_sides_of_distorted_cells_are_scaled_by_the_root_of_the_area():
    data = FakeData([(100, 400), (50, 50)], [[(0, 0, 10, 40)], [(0, 0, 8, 8)]])
    assert cell_sides(data, DataConfig(resize="square", shorter_side=200)).tolist() == [20, 32]


def test_images_without_cells_have_no_sides():
    assert cell_sides(FakeData([(9, 9)], [[]]), DataConfig()).tolist() == []


@pytest.mark.parametrize(("cells", "most"), [([0], 100), ([3, 50], 100), ([51, 3], 102), ([161], 322)])
def test_detections_are_twice_the_most_cells_and_at_least_100(cells, most):
    data = FakeData([(9, 9)] * len(cells), [[(0, 0, 1, 1)] * count for count in cells])
    assert detections_for(data) == most


@pytest.mark.parametrize(
    ("cells", "candidates", "proposals"), [([0], 1000, 1000), ([3, 300], 1200, 1000), ([1000, 9], 4000, 2000)]
)
def test_the_densest_image_decides_how_many_proposals_there_are(cells, candidates, proposals):
    data = FakeData([(9, 9)] * len(cells), [[(0, 0, 1, 1)] * count for count in cells])
    assert (candidates_for(data), proposals_for(data)) == (candidates, proposals)


def test_resolving_leaves_no_auto_that_depends_on_the_data(packed, tiny_config):
    names = ("anchors", "detections_per_image", "rpn_candidates", "rpn_proposals")
    config = resolve_auto(tiny_config(**{f"model__{name}": "auto" for name in names}), packed)
    assert (config.model.rpn_candidates, config.model.rpn_proposals) == (1000, 1000)
    assert config.model.anchors == anchors_for(cell_sides(packed, config.data))
    assert config.model.detections_per_image == 100


def test_what_was_set_by_hand_stays(packed, tiny_config):
    config = tiny_config(model__anchors="8-128", model__detections_per_image=7)
    assert resolve_auto(config, packed) == config


def images(*pixels: np.ndarray) -> list[Sample]:
    """Samples of these (H, W, 3) pixels, without cells."""
    return [
        Sample("", image.astype(np.uint8), np.zeros((1, *image.shape[:2]), np.uint16), np.zeros(0, np.int64))
        for image in pixels
    ]


def test_normalisation_is_that_of_the_pixels():
    image_HWC = np.random.default_rng(0).integers(0, 256, (50, 40, 3))
    image_HWC[..., 1] //= 4
    mean, std = parse_normalization(normalization_for(images(image_HWC), [0], DataConfig()))
    np.testing.assert_allclose(mean, image_HWC.mean(axis=(0, 1)) / 255, atol=5.1e-5)
    np.testing.assert_allclose(std, image_HWC.std(axis=(0, 1)) / 255, atol=5.1e-5)


def test_a_large_image_weighs_no_more_than_a_small_one():
    black, white = np.zeros((300, 200, 3)), np.full((10, 10, 3), 255)
    assert normalization_for(images(black, white), [0, 1], DataConfig()) == "/".join(["0.5000,0.5000,0.5000"] * 2)


def test_the_network_sees_a_mean_of_0_and_a_deviation_of_1():
    rng = np.random.default_rng(0)
    samples = images(*(rng.normal(level, 20, (64, 64, 3)).clip(0, 255) for level in (60, 120, 200)))
    mean, std = parse_normalization(normalization_for(samples, range(3), DataConfig()))
    normalized = np.concatenate([(sample.image_HWC / 255 - mean) / std for sample in samples])
    np.testing.assert_allclose(normalized.mean(axis=(0, 1)), 0, atol=1e-3)
    np.testing.assert_allclose(normalized.std(axis=(0, 1)), 1, atol=1e-3)


def test_a_grey_network_gets_the_normalisation_of_luminance():
    image_HWC = np.full((9, 9, 3), (255, 0, 0))
    mean, _ = parse_normalization(normalization_for(images(image_HWC), [0], DataConfig(color="grey")))
    assert mean == (mean[0],) * 3
    assert mean[0] == pytest.approx(0.299, abs=0.005)


def test_channels_without_variation_have_the_deviation_of_a_grey_level():
    text = normalization_for(images(np.zeros((4, 4, 3)), np.zeros((1, 1, 3))), [0, 1], DataConfig())
    assert text == "0.0000,0.0000,0.0000/0.0039,0.0039,0.0039"
    assert parse_normalization(text)[1] == (0.0039,) * 3


def test_every_nth_pixel_of_a_large_image_tells_as_much():
    side = 3 * int(PIXELS_PER_IMAGE**0.5)
    image_HWC = np.random.default_rng(0).integers(0, 256, (side, side, 3))
    mean, std = parse_normalization(normalization_for(images(image_HWC), [0], DataConfig()))
    np.testing.assert_allclose(mean, image_HWC.mean(axis=(0, 1)) / 255, atol=0.005)
    np.testing.assert_allclose(std, image_HWC.std(axis=(0, 1)) / 255, atol=0.005)


def test_dataset_normalisation_is_that_of_the_images_that_train(packed, tiny_config):
    config = tiny_config(model__normalization="dataset")
    resolved = {}
    for fold, train_on in [(0, "folds"), (1, "folds"), (0, "all")]:
        of_fold = config.replace(data__fold=fold, data__train_on=train_on)
        indices = split(packed.label_counts, of_fold.data).training
        resolved[fold, train_on] = resolve_auto(of_fold, packed).model.normalization
        assert resolved[fold, train_on] == normalization_for(packed, indices, of_fold.data)
    assert len(set(resolved.values())) == 3


def test_other_normalisations_stay_as_they_are_and_need_no_split(packed, tiny_config):
    for text in ("imagenet", "none", "0.5,0.5,0.5/0.2,0.2,0.2"):
        assert resolve_auto(tiny_config(model__normalization=text), packed).model.normalization == text
    assert resolve_auto(tiny_config(data__num_folds=100), packed)
    with pytest.raises(UserError, match=r"data.num_folds: each fold needs an image"):
        resolve_auto(tiny_config(data__num_folds=100, model__normalization="dataset"), packed)
