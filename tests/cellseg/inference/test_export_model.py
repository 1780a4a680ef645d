"""An exported model stands for itself: the folder alone gives the same cells."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch

import cellseg
from cellseg.checkpoint import open_checkpoint
from cellseg.errors import UserError
from cellseg.inference.export_model import export_model
from cellseg.model.build import build_model

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def checkpoint(tiny_config, tmp_path, save_untrained):
    config = tiny_config(inference__score_threshold=0.0, data__root="/somewhere/else")
    torch.manual_seed(0)
    return open_checkpoint(save_untrained(build_model(config.model, config.inference, 4), tmp_path / "best", config))


def test_the_exported_folder_predicts_the_same_and_names_no_place(checkpoint, tmp_path):
    out = tmp_path / "model"
    export_model(checkpoint, out)
    export_model(checkpoint, out)  # over itself
    assert {path.name for path in out.iterdir()} == {"checkpoint.json", "model.safetensors", "model.json", "load.py"}
    assert "/somewhere" not in "".join(path.read_text() for path in out.glob("*.json"))
    image = np.random.default_rng(0).integers(0, 255, (48, 60, 3), dtype=np.uint8)
    expected = cellseg.load(checkpoint.folder, "cpu").predict(image)
    found = cellseg.load(out, "cpu").predict(image)
    assert len(expected) > 0 and found.rles == expected.rles
    np.testing.assert_array_equal(found.scores_N, expected.scores_N)

    tifffile.imwrite(tmp_path / "image.tif", image, photometric="rgb")
    command = [sys.executable, str(out / "load.py"), str(tmp_path / "image.tif")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected)
    assert lines[0].startswith(f"{'abcd'[expected.labels_N[0] - 1]} {expected.scores_N[0]:.3f} ")


def test_the_summary_has_classes_ids_and_normalisation(checkpoint, tmp_path):
    export_model(checkpoint, tmp_path / "model")
    summary = json.loads((tmp_path / "model" / "model.json").read_text())
    assert summary["classes"][1] == {"label": 2, "name": "b", "category_id": 2}
    assert summary["input"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert summary["input"]["standard_deviation"] == pytest.approx([0.229, 0.224, 0.225])


def test_damaged_weights_and_other_folders_are_refused(checkpoint, tmp_path):
    export_model(checkpoint, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model.safetensors: must be the file that checkpoint.json describes"):
        cellseg.load(tmp_path / "model", "cpu")
    weights.unlink()
    with pytest.raises(UserError, match=r"model.safetensors: must be a readable file"):
        cellseg.load(tmp_path / "model", "cpu")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="must be a new folder or an exported model"):
        export_model(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
