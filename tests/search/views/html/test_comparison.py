"""Two studies side by side."""

from types import SimpleNamespace

import numpy as np
import pytest
from drawn_cells import cells
from fakes import make_space
from made_study import make_tables

from cellseg.errors import UserError
from search.report import main
from search.views.html import comparison
from search.views.html.predictions import Validation


@pytest.fixture
def studies(tmp_path):
    return [make_tables(tmp_path / name, make_space(), 12, seed=seed) for seed, name in enumerate(("one", "two"))]


def validations(better: int, fingerprint: str = "x"):
    """What two studies find in 20 images of four cells: ``better`` finds all, the other misses one in most images."""
    rng = np.random.default_rng(0)
    truth = cells(*((0, 15 * place, 10, 1, 1.0) for place in range(4)))
    found = []
    for study in range(2):
        images = []
        for _ in range(20):
            count = 4 if study == better else int(rng.integers(2, 5))
            images.append(cells(*((0, 15 * place, 10, 1, 0.9 - place / 10) for place in range(count))))
        data = SimpleNamespace(names=tuple(f"i{place}" for place in range(20)), class_names=("a",))
        data.fingerprint = fingerprint if study else "x"
        found.append(Validation(0, data, tuple(range(20)), 20, [truth] * 20, images, 80))
    return iter(found)


@pytest.mark.parametrize(("better", "verdict"), [(0, "worse"), (1, "better")])
def test_the_better_study_is_told_with_an_interval_that_leaves_zero_out(studies, monkeypatch, better, verdict):
    found = validations(better)
    monkeypatch.setattr(comparison, "validate", lambda *_: next(found))
    compared = comparison.compare_studies(studies)
    (difference,) = compared.differences
    assert difference.num_images == 20
    assert max(difference.values) == pytest.approx(1.0) and difference.values.index(max(difference.values)) == better
    assert difference.low < difference.values[1] - difference.values[0] < difference.high
    assert difference.low * difference.high > 0
    line = next(line for line in compared.describe() if line.startswith("two against one"))
    assert f": {verdict}; " in line and "20 common images" in line


def test_equal_predictions_are_no_clear_difference(studies, monkeypatch):
    first = next(validations(0))
    monkeypatch.setattr(comparison, "validate", lambda *_: first)
    compared = comparison.compare_studies(studies)
    assert (compared.differences[0].low, compared.differences[0].high, compared.differences[0].share) == (0, 0, 0.5)
    assert "no clear difference" in "".join(compared.describe())


def test_other_data_are_not_compared_image_by_image(studies, monkeypatch):
    found = validations(0, fingerprint="y")
    monkeypatch.setattr(comparison, "validate", lambda *_: next(found))
    compared = comparison.compare_studies(studies)
    assert not compared.differences
    assert "not compared image by image: two: its data are others." in compared.describe()


def test_without_checkpoints_the_tables_are_compared(studies, tmp_path, capsys):
    assert main(["--results", str(tmp_path), "--study", "one", "--study", "two"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("one: segm/AP50 best ") and "\ntwo: segm/AP50 best " in out
    assert "not compared image by image" in out
    text = (tmp_path / "one-two.html").read_text()
    assert "Studies one and two" in text and "Best configs: what differs" in text and "optim.lr" in text


def test_studies_of_different_metrics_are_refused(studies, tmp_path):
    other = make_tables(tmp_path / "loss", make_space(metric="loss/validation", direction="minimize"), 3)
    with pytest.raises(UserError, match=r"one metric, but got segm/AP50 \(one\), loss/validation \(loss\)"):
        comparison.compare_studies([studies[0], other])
