"""The figures of the report's detailed section, against the metric that the search ranks by and by hand."""

import numpy as np
import pytest
from drawn_cells import SIZE, cells

from cellseg.data.detections import Detections
from cellseg.evaluate import evaluate
from search.views.html.quality import Quality, average_precision, f1


def random_images(seed: int, count: int = 8) -> tuple[list[Detections], list[Detections]]:
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(count):
        true, ours = [], []
        for place in range(rng.integers(0, 9)):
            top, left, side, label = (
                20 * (place // 3),
                20 * (place % 3),
                int(rng.integers(6, 14)),
                int(rng.integers(1, 3)),
            )
            true.append((top, left, side, label, 1.0))
            if rng.random() < 0.8:
                shift = int(rng.integers(0, 4))
                label = label if rng.random() < 0.8 else 3 - label
                ours.append((top + shift, left, side, label, round(float(rng.random()), 2)))
        if rng.random() < 0.7:
            ours.append((50, 50, 8, 1, round(float(rng.random()), 2)))
        truths.append(cells(*true))
        found.append(cells(*ours))
    return found, truths


@pytest.mark.parametrize("seed", range(6))
def test_ap50_is_that_of_the_metric(seed):
    found, truths = random_images(seed)
    quality, metrics = Quality(found, truths, ["a", "b"]), evaluate(found, truths, ["a", "b"])
    assert quality.ap50() == pytest.approx(metrics["segm/AP50"], abs=1e-9)
    assert quality.ap50_of(1) == pytest.approx(metrics["segm/AP50/a"], abs=1e-9)


def test_an_image_that_counts_twice_is_as_good_as_two():
    found, truths = random_images(1)
    twice = Quality([*found, found[0]], [*truths, truths[0]], ["a", "b"])
    weights_I = np.ones(len(found))
    weights_I[0] = 2
    assert Quality(found, truths, ["a", "b"]).ap50(weights_I) == pytest.approx(twice.ap50(), abs=5e-3), (
        "up to the order of equals"
    )


def test_hits_missed_cells_and_false_alarms_are_counted_at_the_best_score():
    truth = cells((0, 0, 10, 1, 1), (0, 20, 10, 1, 1), (0, 40, 10, 2, 1))
    found = cells((0, 0, 10, 1, 0.3), (0, 20, 10, 1, 0.2), (0, 40, 10, 1, 0.1), (40, 40, 10, 1, 0.05))
    quality = Quality([found], [truth], ["a", "b"])
    assert quality.best_score == pytest.approx(0.2), "not 0.5, where a weak model finds nothing"
    assert quality.per_image() == [(2, 1, 0)]
    assert quality.confusion().tolist() == [[2, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert f1(2, 1, 0) == pytest.approx(0.8) and f1(0, 0, 0) == 1 and f1(0, 1, 0) == 0


def test_a_cell_that_was_found_as_another_class_is_confused_and_not_missed():
    truth = cells((0, 0, 10, 1, 1), (0, 40, 10, 2, 1))
    found = cells((0, 0, 10, 1, 0.9), (0, 40, 10, 1, 0.95), (40, 0, 10, 2, 0.92))
    assert Quality([found], [truth], ["a", "b"]).confusion().tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_precision_recall_and_f1_by_hand():
    truth = cells((0, 0, 10, 1, 1), (0, 20, 10, 1, 1))
    found = cells((0, 0, 10, 1, 0.9), (40, 40, 10, 1, 0.8), (0, 20, 10, 1, 0.7))
    scores, precision, recall, f1_ = Quality([found], [truth], ["a"]).curve()
    assert scores == pytest.approx([0.9, 0.8, 0.7])
    assert precision == pytest.approx([1, 1 / 2, 2 / 3])
    assert recall == pytest.approx([1 / 2, 1 / 2, 1])
    assert f1_ == pytest.approx([2 / 3, 1 / 2, 4 / 5])


def test_of_a_size_only_its_own_cells_and_false_alarms_count():
    truth = cells((0, 0, 6, 1, 1), (0, 20, 12, 1, 1))
    found = cells((0, 0, 6, 1, 0.5), (40, 40, 12, 1, 0.9))
    quality = Quality([found], [truth], ["a"])
    assert quality.ap50_of_size(0, 100) == (pytest.approx(1.0), 1), "the false alarm is a large one"
    assert quality.ap50_of_size(100, np.inf) == (0.0, 1)


def test_the_bootstrap_surrounds_the_value_and_repeats():
    found, truths = random_images(3, 30)
    quality = Quality(found, truths, ["a", "b"])
    values = quality.bootstrap()
    assert values.min() < quality.ap50() < values.max()
    assert (values == quality.bootstrap()).all()


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_found_and_nothing_there_are_figures_too(images):
    quality = Quality([Detections.empty(SIZE)] * images, [Detections.empty(SIZE)] * images, ["a"])
    assert quality.ap50() == 0 and quality.best_score == 0.5 and quality.size_limits() == (0, 0)
    assert quality.per_image() == [(0, 0, 0)] * images
    assert len(quality.curve()[0]) == 0
    assert average_precision(np.zeros(0, bool), np.zeros(0), 3) == 0
