import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg.config import METRICS, MINIMIZED
from cellseg.data.detections import Detections
from cellseg.data.rle import encode_window
from cellseg.evaluate import evaluate, match

DISC = np.hypot(*(np.mgrid[:13, :13] - 6)) < 6.5
SIZE = (340, 400)


def cells(corners, labels, scores=None, size=SIZE) -> Detections:
    """Discs whose bounding squares start at ``corners`` (row, column)."""
    corners = np.asarray(corners, dtype=int).reshape(-1, 2)
    return Detections(
        size=size,
        boxes_N4=np.concatenate([corners[:, ::-1], corners[:, ::-1] + 13], axis=1).astype(np.float32),
        scores_N=np.ones(len(corners), np.float32) if scores is None else np.asarray(scores, np.float32),
        labels_N=np.asarray(labels, dtype=np.int64).reshape(-1),
        rles=tuple(encode_window(DISC, int(top), int(left), *size) for top, left in corners),
    )


def grid(count: int) -> np.ndarray:
    return np.array([divmod(index, 25) for index in range(count)]) * 14


def random_pair(rng: np.random.Generator, num_truths: int, num_found: int, num_classes: int):
    """Truth on a loose grid, and detections: truth moved a little, with ties in score and some wrong classes."""
    corners = grid(600)[rng.permutation(600)[:num_truths]] + rng.integers(-3, 4, (num_truths, 2))
    labels = rng.integers(1, num_classes + 1, num_truths)
    picked = rng.integers(0, max(num_truths, 1), num_found) if num_truths else np.zeros(0, int)
    found_labels = np.where(
        rng.random(len(picked)) < 0.8, labels[picked], rng.integers(1, num_classes + 1, len(picked))
    )
    found_corners = corners[picked] + rng.integers(-3, 4, (len(picked), 2))
    scores = rng.integers(0, 20, len(picked)) / 20
    return cells(found_corners, found_labels, scores), cells(corners, labels)


def reference_stats(predictions, truths, num_classes) -> np.ndarray:
    """pycocotools' own twelve figures."""
    annotations = [
        {
            "id": 0,
            "image_id": image_id,
            "category_id": int(label),
            "iscrowd": 0,
            "segmentation": rle,
            "area": float(coco_mask.area(rle)),
            "bbox": coco_mask.toBbox(rle).tolist(),
        }
        for image_id, truth in enumerate(truths)
        for label, rle in zip(truth.labels_N, truth.rles, strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": t.size[0], "width": t.size[1]} for i, t in enumerate(truths)],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(num_classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        found = coco.loadRes([record for i, p in enumerate(predictions) for record in p.to_coco_results(i)])
        evaluator = COCOeval(coco, found, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    sizes = [(30, 60), (0, 0), (140, 260), (20, 0), (50, 50)]
    pairs = zip(*(random_pair(rng, *size, num_classes=2) for size in sizes), strict=True)
    predictions, truths = map(list, pairs)
    # a class that is predicted but never there, and an image with detections but no cell
    predictions = [*predictions, cells([(50, 50), (70, 70)], [3, 1], [0.9, 0.4])]
    truths = [*truths, Detections.empty(SIZE)]
    metrics = evaluate(predictions, truths, ["a", "b", "c"])
    stats = reference_stats(predictions, truths, num_classes=3)
    assert [metrics[f"segm/{name}"] for name in ("AP", "AP50", "AP75")] == pytest.approx(stats[:3], abs=1e-12)
    assert 0.05 < metrics["segm/AP"] < metrics["segm/AP50"] < 1
    assert metrics["segm/AP@all"] != metrics["segm/AP"]


def test_perfect_predictions_on_600_cells_score_one_when_all_detections_count():
    truth = cells(grid(600), np.ones(600))
    metrics = evaluate([truth], [truth], ["a"])
    assert [metrics[f"segm/{name}@all"] for name in ("AP", "AP50", "AP75")] == pytest.approx([1.0] * 3, abs=1e-12)
    assert metrics["segm/AP50"] == pytest.approx(17 / 101)  # 100 of 600 cells: recalls 0, 0.01, ..., 0.16


def test_a_single_cell_gives_the_precision_computed_by_hand():
    truth = cells([(10, 10)], [1])
    prediction = cells([(100, 100), (10, 10)], [1, 1], [0.9, 0.8])  # the false one comes first
    assert evaluate([prediction], [truth], ["a"])["segm/AP"] == pytest.approx(0.5)


def test_of_two_detections_of_one_cell_only_one_counts():
    truth = cells([(10, 10), (10, 60)], [1, 1])
    prediction = cells([(10, 10), (10, 10)], [1, 1], [0.9, 0.8])
    assert evaluate([prediction], [truth], ["a"])["segm/AP"] == pytest.approx(51 / 101)


def test_classes_have_their_own_figures_and_an_absent_class_does_not_count():
    truth = cells([(10, 10), (60, 60)], [1, 2])
    prediction = cells([(10, 10), (200, 200)], [1, 2], [0.9, 0.8])
    metrics = evaluate([prediction], [truth], ["round", "long", "absent"])
    assert metrics["segm/AP/round"] == pytest.approx(1.0)
    assert metrics["segm/AP50/round"] == pytest.approx(1.0)
    assert metrics["segm/AP/long"] == metrics["segm/AP/absent"] == metrics["segm/AP50/absent"] == 0.0
    assert metrics["segm/AP"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "predictions, truths",
    [
        pytest.param([], [], id="no image"),
        pytest.param([Detections.empty(SIZE)], [Detections.empty(SIZE)], id="nothing there, nothing found"),
        pytest.param([Detections.empty(SIZE)], [cells([(10, 10)], [1])], id="nothing found"),
        pytest.param([cells([(10, 10)], [1])], [Detections.empty(SIZE)], id="nothing there"),
        pytest.param([cells([(10, 10)], [2])], [cells([(10, 10)], [1])], id="wrong class"),
    ],
)
def test_where_nothing_can_be_right_every_figure_is_zero(predictions, truths):
    metrics = evaluate(predictions, truths, ["a", "b"])
    assert set(metrics.values()) == {0.0}


def test_the_figures_are_finite_plain_floats_and_every_metric_of_the_config_is_among_them(capsys):
    prediction, truth = random_pair(np.random.default_rng(5), 40, 80, num_classes=2)
    metrics = evaluate([prediction], [truth], ["a", "b"])
    assert set(METRICS) - MINIMIZED < set(metrics)
    assert all(type(value) is float and math.isfinite(value) and 0 <= value <= 1 for value in metrics.values())
    assert capsys.readouterr().out == ""


def test_predictions_of_another_size_are_refused():
    with pytest.raises(AssertionError, match="sizes must agree"):
        evaluate([Detections.empty((3, 4))], [Detections.empty((4, 3))], ["a"])


@pytest.mark.parametrize(
    ("ious", "matched"),
    [
        ([[0.5]], [True]),  # the threshold itself is enough
        ([[0.4999]], [False]),
        ([[0.7, 0.7], [0.0, 0.7]], [True, False]),  # the first detection takes the last of equals
        ([[0.7, 0.7], [0.7, 0.0]], [True, True]),
        ([[0.6, 0.7], [0.6, 0.8]], [True, True]),  # the second takes what is free
        ([[0.7], [0.9]], [True, False]),  # who has the higher score chooses first
    ],
)
def test_a_detection_takes_the_free_cell_it_overlaps_most_the_last_of_equals(ious, matched):
    assert match(np.array(ious), np.array([0.5])).tolist() == [matched]


def rectangles(*windows: tuple[int, int, int, int], scores=None) -> Detections:
    """Filled rectangles of (top, left, height, width)."""
    corners = [(left, top, left + width, top + height) for top, left, height, width in windows]
    return Detections(
        size=SIZE,
        boxes_N4=np.array(corners, np.float32),
        scores_N=np.array(scores or [1.0] * len(windows), np.float32),
        labels_N=np.ones(len(windows), np.int64),
        rles=tuple(encode_window(np.ones((h, w), bool), top, left, *SIZE) for top, left, h, w in windows),
    )


def test_an_overlap_of_exactly_a_threshold_and_ties_count_as_in_pycocotools():
    truth = rectangles((10, 10, 20, 20), (10, 100, 10, 10), (10, 110, 10, 10), (100, 10, 20, 20))
    prediction = rectangles(
        (10, 10, 10, 20),  # half of the first cell
        (10, 100, 10, 20),  # the second and the third, each by half
        (10, 110, 10, 10),  # the third: taken already, if ties go to the last
        (100, 10, 15, 20),  # three quarters of the fourth
        scores=[0.9, 0.8, 0.7, 0.6],
    )
    metrics = evaluate([prediction], [truth], ["a"])
    stats = reference_stats([prediction], [truth], num_classes=1)
    assert [metrics[f"segm/{name}"] for name in ("AP", "AP50", "AP75")] == pytest.approx(stats[:3], abs=1e-12)
    # at 0.5: right, right, wrong, right
    assert metrics["segm/AP50"] == pytest.approx((51 * 1.0 + 25 * 0.75) / 101)
