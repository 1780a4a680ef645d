import numpy as np
import pytest
import torch
from torch import nn

from cellseg.checkpoint import open_checkpoint
from cellseg.data.rle import decode
from cellseg.inference.image import load_model, predict_image, predict_images
from cellseg.model.build import build_model


class Oracle(nn.Module):
    """Finds one cell that covers the second quarter of every image's width and the lower half of its height."""

    def __init__(self):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, images):
        self.seen += images
        _, height, width = images[0].shape
        return [
            {
                "boxes": torch.tensor([[width / 4, height / 2, width / 2, height]]),
                "labels": torch.tensor([2]),
                "scores": torch.tensor([0.75]),
                "masks": torch.ones(1, 1, 28, 28),
            }
        ]


def picture(height=60, width=80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({}, (60, 80)),
        ({"data__shorter_side": 120}, (120, 160)),
        ({"data__shorter_side": 32}, (32, 43)),
        ({"data__longer_side": 40}, (30, 40)),
        ({"data__resize": "square", "data__shorter_side": 64}, (64, 64)),
        ({"inference__scales": "1.5"}, (90, 120)),
    ],
)
def test_cells_come_back_in_the_pixels_of_the_image_whatever_the_network_saw(tiny_config, settings, seen):
    model = Oracle()
    found = predict_image(model, picture(), tiny_config(**settings))
    assert model.seen[0].shape == (3, *seen)
    assert found.size == (60, 80)
    np.testing.assert_allclose(found.boxes_N4, [[20, 30, 40, 60]], rtol=1e-5)
    assert found.boxes_N4.dtype == np.float32
    assert (found.scores_N.tolist(), found.labels_N.tolist()) == ([0.75], [2])
    mask_HW = decode(found.rles[0])
    assert mask_HW.shape == (60, 80)
    truth_HW = np.zeros((60, 80), bool)
    truth_HW[30:60, 20:40] = True
    assert (mask_HW & truth_HW).sum() / (mask_HW | truth_HW).sum() > 0.9  # the mask head's outermost pixels fade


def test_the_network_sees_the_image_between_0_and_1_in_the_order_of_training(tiny_config):
    model, image_HWC = Oracle(), picture()
    predict_image(model, image_HWC, tiny_config())
    np.testing.assert_allclose(model.seen[0].numpy() * 255, image_HWC.transpose(2, 0, 1), atol=1e-3)
    predict_image(model, image_HWC, tiny_config(data__color="grey"))
    assert torch.equal(model.seen[1][0], model.seen[1][2])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((60, 80, 3), np.uint16),
        np.zeros((60, 80, 3), np.float32),
        np.zeros((60, 80), np.uint8),
        np.zeros((60, 80, 4), np.uint8),
    ],
)
def test_an_image_that_is_not_yet_rgb_never_reaches_the_network(tiny_config, image):
    model = Oracle()
    with pytest.raises(AssertionError, match="to_rgb comes first"):
        predict_image(model, image, tiny_config())
    assert model.seen == []


def test_training_and_prediction_see_the_same_image(packed, tiny_config):
    from cellseg.data.loader import TrainingImages

    config = tiny_config(data__shorter_side=80, data__color="grey", augment__preset="none")
    model = Oracle()
    predict_image(model, packed[3].image_HWC, config)
    trained, _ = TrainingImages(packed, (3,), config)[1, 0]
    assert torch.equal(model.seen[0], trained.float() / 255)


def test_prediction_restores_the_models_mode(tiny_config):
    model = Oracle().train()
    assert len(predict_images(model, iter([picture(), picture(40, 40)]), tiny_config())) == 2
    assert model.training
    with pytest.raises(AttributeError):
        predict_images(model, iter([None]), tiny_config())
    assert model.training
    predict_images(model.eval(), [], tiny_config())
    assert not model.training


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 86), (5, 200)])
def test_images_of_any_size_can_be_predicted(tiny_config, height, width):
    config = tiny_config(inference__score_threshold=0.0)
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, 2).eval()
    found = predict_image(model, picture(height, width), config)
    assert found.size == (height, width)
    assert all(rle["size"] == [height, width] for rle in found.rles)


def test_a_loaded_model_is_the_saved_one_in_evaluation_mode(tiny_config, tmp_path, save_untrained):
    config = tiny_config()
    saved = open_checkpoint(save_untrained(build_model(config.model, config.inference, 4), tmp_path / "best", config))
    model = load_model(saved)
    assert not model.training
    weights = saved.load_weights()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# Multi-scale testing


class Scripted(nn.Module):
    """Finds for each image it sees, known by its width, the cells of a script: (left, top, side, score, label) in
    shares of its size. A cell's mask is filled with its score."""

    def __init__(self, script: dict[int, list[tuple[float, float, float, float, int]]]):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))
        self.script = script
        self.seen: list[tuple[int, int]] = []

    def forward(self, images):
        _, height, width = images[0].shape
        self.seen.append((height, width))
        cells = torch.tensor(self.script[width]).reshape(-1, 5)
        left, top, side, scores, labels = cells.unbind(dim=1)
        size = torch.tensor([width, height, width, height])
        return [
            {
                "boxes": torch.stack([left, top, left + side, top + side], dim=1) * size,
                "labels": labels.long(),
                "scores": scores,
                "masks": scores[:, None, None, None].expand(-1, 1, 28, 28),
            }
        ]


SCRIPT = {
    60: [(0.1, 0.1, 0.2, 0.9, 1), (0.6, 0.6, 0.2, 0.8, 1)],
    80: [(0.11, 0.1, 0.2, 0.95, 1), (0.1, 0.1, 0.2, 0.5, 2)],
    100: [(0.1, 0.1, 0.2, 0.6, 1), (0.1, 0.7, 0.2, 0.7, 1)],
}
"""What is found in an image of 60 x 80 pixels at factors 0.75, 1 and 1.25: one cell at all of them, at 1 also as
another class, and one cell each that only 0.75 and 1.25 show."""


def test_several_scales_find_each_cell_once_and_divide_its_score_by_their_number(tiny_config):
    model = Scripted(SCRIPT)
    config = tiny_config(inference__scales="0.75,1,1.25", inference__mask_threshold=0.4)
    found = predict_image(model, picture(), config)
    assert model.seen == [(45, 60), (60, 80), (75, 100)]
    np.testing.assert_allclose(found.scores_N, [(0.9 + 0.95 + 0.6) / 3, 0.8 / 3, 0.7 / 3, 0.5 / 3], rtol=1e-6)
    assert found.labels_N.tolist() == [1, 1, 1, 2]
    left = (0.9 * 8 + 0.95 * 8.8 + 0.6 * 8) / (0.9 + 0.95 + 0.6)
    expected_N4 = np.array([(left, 6, left + 16, 18), (48, 36, 64, 48), (8, 42, 24, 54), (8, 6, 24, 18)])
    np.testing.assert_allclose(found.boxes_N4, expected_N4, rtol=1e-5)
    assert (found.boxes_N4.dtype, found.scores_N.dtype, found.labels_N.dtype) == (np.float32, np.float32, np.int64)


def test_a_mask_is_the_average_of_the_scales_that_found_the_cell(tiny_config):
    # A mask's probabilities are its cell's score. Weighted by the scores, the average of the first cell is 0.85.
    config = tiny_config(inference__scales="0.75,1,1.25", inference__mask_threshold=0.55)
    areas = [int(decode(rle).sum()) for rle in predict_image(Scripted(SCRIPT), picture(), config).rles]
    assert areas[0] > 100 and areas[1] > 100 and areas[2] > 100 and areas[3] == 0


def test_no_more_cells_remain_than_an_image_may_have(tiny_config):
    config = tiny_config(inference__scales="0.75,1,1.25", model__detections_per_image=2)
    assert len(predict_image(Scripted(SCRIPT), picture(), config)) == 2


def test_what_soft_suppression_has_lowered_at_a_scale_is_not_lowered_again(tiny_config):
    # Two neighbours that every scale tells apart: the network has given the second one its lower score already.
    neighbours = [(0.1, 0.1, 0.4, 0.9, 1), (0.15, 0.1, 0.4, 0.8, 1)]
    config = tiny_config(inference__scales="0.75,1,1.25", inference__nms="soft")
    found = predict_image(Scripted(dict.fromkeys(SCRIPT, neighbours)), picture(), config)
    np.testing.assert_allclose(found.scores_N, [0.9, 0.8], rtol=1e-6)


@pytest.mark.parametrize("scales", ["1", "1.0", "0.75", "1.25"])
def test_a_single_scale_is_not_suppressed_again(tiny_config, monkeypatch, scales):
    import cellseg.model.nms

    monkeypatch.setattr(cellseg.model.nms, "suppress", None)
    model = Scripted({width: [(0.1, 0.1, 0.2, 0.5, 1), (0.1, 0.1, 0.2, 0.6, 1)] for width in SCRIPT})
    found = predict_image(model, picture(), tiny_config(inference__scales=scales, inference__nms="soft"))
    assert len(model.seen) == 1
    np.testing.assert_allclose(found.scores_N, [0.5, 0.6])


def test_factors_that_come_to_the_same_size_are_predicted_once(tiny_config):
    model = Scripted({5: [(0.1, 0.1, 0.5, 0.5, 1)]})
    found = predict_image(model, picture(5, 5), tiny_config(inference__scales="0.5,0.75,1"))
    assert model.seen == [(5, 5)]
    assert found.scores_N.tolist() == [0.5]


def test_nothing_found_at_any_scale_is_a_legal_result(tiny_config):
    found = predict_image(
        Scripted({width: [] for width in SCRIPT}), picture(), tiny_config(inference__scales="0.75,1,1.25")
    )
    assert len(found) == 0 and found.size == (60, 80)


@pytest.mark.parametrize("nms", ["hard", "soft"])
@pytest.mark.parametrize(("height", "width"), [(3, 5), (60, 80)])
def test_a_real_model_predicts_at_several_scales(tiny_config, nms, height, width):
    config = tiny_config(inference__score_threshold=0.0, inference__scales="0.5,1,2", inference__nms=nms)
    torch.manual_seed(0)
    model = build_model(config.model, config.inference, 2).eval()
    found = predict_image(model, picture(height, width), config)
    assert 0 < len(found) <= 20
    assert (np.diff(found.scores_N) <= 0).all()
    assert (found.boxes_N4 >= 0).all()
    assert (found.boxes_N4 <= np.array([width, height] * 2) + 1e-3).all()
