"""Settings chosen on stored predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellseg.config import TrialConfig
from cellseg.data.detections import Detections
from cellseg.data.rle import decode
from cellseg.data.softmask import SoftMask
from cellseg.errors import UserError
from cellseg.evaluate import evaluate
from cellseg.inference.calibration import Scorer, calibrate, choose_weights, cross_validate, operating_point, repeated
from cellseg.inference.fusion import fuse
from cellseg.inference.image import predict_image
from cellseg.inference.postprocess import loosened, mask_qualities
from cellseg.inference.stored import load_predictions, save_predictions
from cellseg.model.build import build_model

SIZE = (64, 64)
CONFIG = TrialConfig().replace(model__detections_per_image=100)


def found(*cells: tuple[int, int, int, float], probability: float = 1.0) -> Detections:
    """Squares (left, top, side, score) of class 1, whose masks have a rim of half the probability."""
    masks = []
    for left, top, side, _ in cells:
        values = np.full((side + 4, side + 4), probability / 2, np.float32)
        values[2:-2, 2:-2] = probability
        masks.append(SoftMask.of(values, top - 2, left - 2, SIZE))
    boxes = [(x, y, x + side, y + side) for x, y, side, _ in cells]
    return Detections(
        SIZE,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([cell[3] for cell in cells], np.float32),
        np.ones(len(cells), np.int64),
        tuple(mask.encode(0.5, SIZE) for mask in masks),
        tuple(masks),
    )


def images(count: int = 20) -> tuple[list[Detections], list[Detections]]:
    """Truths of two cells, and predictions whose masks are too large at thresholds up to a half."""
    rng = np.random.default_rng(0)
    truths, predictions = [], []
    for _ in range(count):
        left, top = rng.integers(4, 12, 2).tolist()
        cells = [(left, top, 12, 1.0), (left + 30, top + 20, 10, 1.0)]
        truths.append(found(*cells, probability=0.9))  # cut at 0.5: without the rim
        predictions.append(found(*((*cell[:3], float(rng.uniform(0.5, 1))) for cell in cells)))
    return predictions, truths


def test_calibration_takes_what_gains_on_images_that_had_no_part_in_the_choice():
    predictions, truths = images()
    choice = calibrate(predictions, CONFIG, Scorer(truths, ["a"], "segm/AP"))
    assert choice.option.inference.mask_threshold > 0.5
    assert choice.option.inference.nms == CONFIG.inference.nms  # nothing else gains
    before = evaluate(repeated(predictions, CONFIG), truths, ["a"])["segm/AP"]
    after = evaluate(repeated(predictions, choice.option), truths, ["a"])["segm/AP"]
    assert choice.before == before and after == pytest.approx(1.0)
    assert choice.gain == pytest.approx(after - before)


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_images_change_nothing(count):
    predictions, truths = images(count)
    choice = calibrate(predictions, CONFIG, Scorer(truths, ["a"], "segm/AP"))
    assert choice.option == CONFIG and choice.gain == 0


def test_a_choice_that_only_luck_makes_is_not_taken():
    # Two options that differ by the image alone: what is best on some images is no better on the others.
    _, truths = images(20)
    empty = [Detections.empty(SIZE) for _ in truths]
    rng = np.random.default_rng(1)
    options = {name: [t if rng.random() < 0.5 else e for t, e in zip(truths, empty, strict=True)] for name in "abcdef"}
    scorer = Scorer(truths, ["a"], "segm/AP")
    compared = {name: scorer.compare(predictions) for name, predictions in options.items()}

    def choose(indices):
        return max(options, key=lambda name: scorer.value([compared[name][index] for index in indices]))

    choice = cross_validate(choose, compared.__getitem__, "a", scorer)
    best = choose(range(20))
    assert choice.option == ("a" if choice.gain <= 0 else best)
    assert choice.gain < scorer.value(compared[best]) - choice.before  # the best of six looks better than it is


def test_a_member_that_only_disturbs_gets_no_weight_and_one_that_helps_does():
    _, truths = images()
    rng = np.random.default_rng(2)
    half = [truth.select([0]) for truth in truths]
    other_half = [truth.select([1]) for truth in truths]
    noise = [found((int(x), int(y), 9, 1.0)) for x, y in rng.integers(4, 50, (len(truths), 2))]
    members = [half, noise, other_half]

    def fused(weights):
        used = [position for position, weight in enumerate(weights) if weight]
        return [
            fuse([members[p][image] for p in used], CONFIG.inference, 100, [weights[p] for p in used])
            for image in range(len(truths))
        ]

    choice = choose_weights(members, fused, Scorer(truths, ["a"], "segm/AP50"))
    assert choice.option[:2] == (1.0, 0.0) and choice.option[2] > 0
    assert choice.gain > 0.3


@pytest.mark.parametrize("settings", [{}, {"inference__nms_threshold": 0.3}, {"inference__nms": "soft"}])
def test_what_was_found_loosely_repeats_what_the_network_selects(tiny_config, settings):
    config = tiny_config(inference__score_threshold=0.1, **settings)
    torch.manual_seed(0)
    image_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    itself = predict_image(build_model(config.model, config.inference, 2).eval(), image_HWC, config)
    loose_config = loosened(config)
    torch.manual_seed(0)
    model = build_model(loose_config.model, loose_config.inference, 2).eval()
    from cellseg.inference.image import predict_images

    loose = predict_images(model, [image_HWC], loose_config, soft=True)
    (again,) = repeated(loose, config)
    assert len(loose[0]) >= len(itself) > 0
    if settings.get("inference__nms") != "soft":
        np.testing.assert_allclose(again.scores_N[:5], itself.scores_N[:5], rtol=1e-5)
        assert again.rles[:5] == itself.rles[:5]


def test_predictions_come_back_from_their_file(tmp_path):
    predictions = [found((5, 5, 10, 0.9), (20, 30, 12, 0.5)), Detections.empty(SIZE), found((40, 40, 9, 0.7))]
    path = tmp_path / "deep" / "t0000.npz"
    save_predictions(path, predictions)
    assert [file.name for file in path.parent.iterdir()] == ["t0000.npz"]
    for one, other in zip(predictions, load_predictions(path, 0.5), strict=True):
        assert one.size == other.size and one.rles == other.rles
        np.testing.assert_array_equal(one.boxes_N4, other.boxes_N4)
        np.testing.assert_array_equal(one.scores_N, other.scores_N)
        assert one.labels_N.tolist() == other.labels_N.tolist() and other.labels_N.dtype == np.int64
        for mine, yours in zip(one.soft or (), other.soft, strict=True):
            assert (mine.top, mine.left) == (yours.top, yours.left)
            np.testing.assert_array_equal(mine.values_hw, yours.values_hw)
    assert decode(load_predictions(path, 0.4)[0].rles[0]).sum() > decode(predictions[0].rles[0]).sum() - 1
    save_predictions(path, [Detections.empty(SIZE)])
    assert [len(found) for found in load_predictions(path, 0.5)] == [0]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"must be a( whole)? file of predictions"):
        load_predictions(path, 0.5)


def test_the_quality_of_a_mask_is_the_mean_probability_of_its_pixels(tiny_config):
    masks = np.array([[[0.9, 0.7], [0.2, 0.0]], [[0.1, 0.2], [0.3, 0.4]], [[1, 1], [1, 1]]], np.float32)
    np.testing.assert_allclose(mask_qualities(masks, 0.5), [0.8, 0, 1])
    unsure, sure = found((5, 5, 10, 0.9), probability=0.6), found((30, 30, 10, 0.8))
    both = Detections(
        SIZE,
        np.concatenate([unsure.boxes_N4, sure.boxes_N4]),
        np.concatenate([unsure.scores_N, sure.scores_N]),
        np.ones(2, np.int64),
        unsure.rles + sure.rles,
        (unsure.soft or ()) + (sure.soft or ()),
    )
    (again,) = repeated([both], CONFIG.replace(inference__mask_quality=1.0, inference__mask_threshold=0.55))
    np.testing.assert_allclose(again.scores_N, [0.8, 0.54], atol=0.01)
    assert len(repeated([both], CONFIG.replace(inference__min_area=1000))[0]) == 0
    assert replace(both, soft=None).soft is None


def test_the_operating_point_separates_right_from_wrong_scores_of_each_class():
    truths, predictions = [], []
    for index in range(20):
        cell = found((5, 5, 10, 1.0))
        wrong = found((40, 40, 10, 0.3 + index / 1000))
        right = found((5, 5, 10, 0.6 + index / 1000))
        truths.append(cell)
        predictions.append(
            Detections(
                SIZE,
                np.concatenate([right.boxes_N4, wrong.boxes_N4]),
                np.concatenate([right.scores_N, wrong.scores_N]),
                np.ones(2, np.int64),
                right.rles + wrong.rles,
            )
        )
    scorer = Scorer(truths, ["a", "b"], "segm/AP")
    point = operating_point(scorer.compare(predictions), 2)
    assert point.thresholds == (pytest.approx(0.6), 1.0)  # the second class does not occur
    assert point.f1 > 0.9
    nothing = operating_point(scorer.compare([Detections.empty(SIZE) for _ in truths]), 2)
    assert nothing.thresholds == (1.0, 1.0) and nothing.f1 == 0
    assert operating_point([], 1).f1 == 0
