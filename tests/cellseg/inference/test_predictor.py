"""A checkpoint as Python users predict with it: arrays and files give the same cells, or a sentence."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

import cellseg
from cellseg.data.detections import Detections
from cellseg.errors import UserError
from cellseg.model.build import build_model


@pytest.fixture
def predictor(tiny_config, tmp_path, save_untrained):
    config = tiny_config(inference__score_threshold=0.0)
    torch.manual_seed(0)
    folder = save_untrained(build_model(config.model, config.inference, 4), tmp_path / "best", config)
    return cellseg.load(str(folder), "cpu")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_array_gives_the_cells_of_the_file_that_holds_it(predictor, tmp_path, dtype):
    image_HW = (np.random.default_rng(0).random((48, 60)) * 250 + 3).astype(dtype)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image_HW)
    of_array, of_file, of_text = (predictor.predict(image) for image in (image_HW, path, str(path)))
    assert len(of_array) > 0 and of_array.size == (48, 60)
    for other in (of_file, of_text):
        np.testing.assert_array_equal(of_array.boxes_N4, other.boxes_N4)
        np.testing.assert_array_equal(of_array.scores_N, other.scores_N)
        assert of_array.rles == other.rles


def test_an_image_of_another_bit_depth_gives_the_same_cells(predictor):
    # Every value from 0 to 255 occurs, so that stretching gives the uint8 image back.
    image_HW = np.random.default_rng(0).permutation(np.repeat(np.arange(256, dtype=np.uint8), 12)).reshape(48, 64)
    expected = predictor.predict(image_HW)
    assert len(expected) > 0
    for other_HW in (image_HW.astype(np.uint16) * 257, image_HW.astype(np.float64) / 255):
        found = predictor.predict(other_HW)
        np.testing.assert_allclose(found.boxes_N4, expected.boxes_N4, atol=0.5)
        np.testing.assert_allclose(found.scores_N, expected.scores_N, atol=0.02)


def test_what_is_no_image_is_a_sentence(predictor, tmp_path):
    with pytest.raises(UserError, match="image: must be a numpy array, but got list"):
        predictor.predict([[0, 1], [1, 0]])
    with pytest.raises(UserError, match=r"image: must have pixels of the shape .* but got \(3, 40, 50\)"):
        predictor.predict(np.zeros((3, 40, 50), np.uint8))
    with pytest.raises(UserError, match=r"absent\.tif: the file must exist"):
        predictor.predict(tmp_path / "absent.tif")
    with pytest.raises(UserError, match="must be a checkpoint folder"):
        cellseg.load(tmp_path)


def test_the_classes_have_their_names(predictor):
    assert predictor.class_names == ("a", "b", "c", "d")
    assert not predictor.model.training


def test_a_model_is_evaluated_on_data_whose_classes_have_its_names(
    tiny_config, tmp_path, save_untrained, synthetic_root, packed, monkeypatch
):
    monkeypatch.setenv("CELLSEG_CACHE", str(tmp_path / "cache"))
    config = tiny_config()
    folder = save_untrained(build_model(config.model, config.inference, 4), tmp_path / "best", config)
    with pytest.raises(UserError, match=r"must be among the model's \(a, b, c, d\), but got class1"):
        cellseg.load(folder, "cpu").evaluate(synthetic_root)
    description = folder / "checkpoint.json"
    names = '"class4",\n    "class3",\n    "class2",\n    "class1"'
    description.write_text(description.read_text().replace('"a",\n    "b",\n    "c",\n    "d"', names))
    model = cellseg.load(folder, "cpu")
    assert model.class_names == ("class4", "class3", "class2", "class1")
    # What is found is what is there, in the model's own numbers of the classes.
    truths = [Detections.from_sample(packed[index]) for index in range(len(packed))]
    perfect = iter([replace(truth, labels_N=5 - truth.labels_N) for truth in truths])
    monkeypatch.setattr("cellseg.inference.predictor.predict_image", lambda *_: next(perfect))
    assert model.evaluate(synthetic_root)["segm/AP"] == pytest.approx(1)
