"""Images into a folder: which are found, what is skipped, what fails, and how large ones are cut."""

import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch

from cellseg.checkpoint import open_checkpoint
from cellseg.data.detections import Detections
from cellseg.errors import UserError
from cellseg.inference.image import load_model, predict_image
from cellseg.inference.outputs import folder
from cellseg.inference.outputs.inputs import find_inputs, unique_names
from cellseg.inference.outputs.large import Tiling, tiled_config
from cellseg.inference.outputs.options import KINDS, parse_kinds
from cellseg.inference.outputs.writers import FORMATS
from cellseg.model.build import build_model
from cellseg.predict import main

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def checkpoint(tiny_config, tmp_path, save_untrained):
    """An untrained model, all of whose detections have a score of about 1/5."""
    config = tiny_config(inference__score_threshold=0.01)
    torch.manual_seed(0)
    return save_untrained(build_model(config.model, config.inference, 4), tmp_path / "run" / "best", config)


@pytest.fixture
def images(tmp_path):
    """Three images of 64 x 80 px in a folder."""
    place = tmp_path / "images"
    place.mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 255, (64, 80, 3), dtype=np.uint8)
        tifffile.imwrite(place / f"{'abc'[number]}.tif", values, photometric="rgb")
    return place


def predict(*words) -> int:
    return main([*map(str, words), "--device", "cpu"])


def test_a_folder_of_images_becomes_files_of_every_kind_with_the_same_cells(checkpoint, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(checkpoint, images, "--to", ",".join(KINDS), "--out", out, "--score", 0.05) == 0
    assert "3 images to labels, coco, geojson, roi, csv, overlay" in capsys.readouterr().out
    counts = {}
    for name in "abc":
        labels_HW = tifffile.imread(out / "labels" / f"{name}.tif")
        counts[name] = len(np.unique(labels_HW)) - 1
        features = json.loads((out / "geojson" / f"{name}.geojson").read_text())["features"]
        assert len(features) == counts[name] == labels_HW.max() > 0
    rows = (out / "cells.csv").read_text().splitlines()[1:]
    assert {name: sum(row.startswith(f"{name},") for row in rows) for name in "abc"} == counts
    coco = json.loads((out / "coco.json").read_text())
    assert len(coco["annotations"]) == sum(counts.values())
    assert [image["id"] for image in coco["images"]] == [1, 2, 3]


def test_without_tiles_the_cells_are_those_of_the_python_api(checkpoint, images, tmp_path):
    assert predict(checkpoint, images / "a.tif", "--to", "coco", "--out", tmp_path / "out", "--score", 0.05) == 0
    records = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    opened = open_checkpoint(checkpoint)
    found = predict_image(load_model(opened), tifffile.imread(images / "a.tif"), opened.config).above(0.05)
    kept = {json.dumps(record["segmentation"]) for record in found.to_coco_results(1)}
    assert records and {json.dumps(record["segmentation"]) for record in records} <= kept


def test_a_run_folder_stands_for_its_best_checkpoint(checkpoint, images, tmp_path):
    assert predict(checkpoint.parent, images / "a.tif", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "labels" / "a.tif").is_file()


def test_by_default_unlikely_cells_are_left_out_and_the_summary_says_so(checkpoint, images, tmp_path, capsys):
    assert predict(checkpoint, images, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "cells with a score of at least 0.5" in out and "No cell has a score of 0.5. Try a lower --score" in out
    assert not tifffile.imread(tmp_path / "out" / "labels" / "a.tif").any()
    assert predict(checkpoint, images, "--out", tmp_path / "out", "--score", 0.05) == 0
    assert "cells; --score 0.5 leaves them out" in capsys.readouterr().out


def test_finished_images_are_skipped_until_they_or_the_settings_change(checkpoint, images, tmp_path, monkeypatch):
    seen = []

    def find_nothing(model, images, *rest, **more):
        seen.append(len(images))
        return [Detections.empty(image.shape[:2]) for image in images]

    monkeypatch.setattr(folder, "load_model", lambda *arguments: object())
    monkeypatch.setattr(folder, "predict_images", find_nothing)

    def run(*options) -> int:
        seen.clear()
        assert predict(checkpoint, images, "--out", tmp_path / "out", *options) == 0
        return sum(seen)

    assert run() == 3
    assert run() == 0
    tifffile.imwrite(images / "b.tif", np.zeros((64, 80), np.uint8))
    assert run() == 1
    (tmp_path / "out" / "labels" / "c.tif").unlink()
    assert run() == 1
    record = tmp_path / "out" / "predicted.jsonl"
    first, *_ = record.read_text().splitlines(keepends=True)
    record.write_text(first + first[:30])  # a kill within a line
    assert run() == 2
    assert run() == 0
    assert run("--score", 0.2) == 3
    assert run("--score", 0.2, "--to", "labels,geojson") == 3


def test_failures_do_not_stop_the_others_and_are_all_named_in_the_end(checkpoint, images, tmp_path, capsys):
    (images / "b.tif").write_bytes(b"II*\0 no image")
    (images / "d.png").write_bytes(b"neither")
    assert predict(checkpoint, images, "--out", tmp_path / "out", "--to", "labels,csv") == 2
    out, err = capsys.readouterr()
    assert {path.name for path in (tmp_path / "out" / "labels").iterdir()} == {"a.tif", "c.tif"}
    assert "cells on 2 of 4 images" in out and "b: failed" in out
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "b.tif" in errors[0] and "d.png" in errors[1]


def test_a_full_disk_ends_the_command_at_once(checkpoint, images, tmp_path, monkeypatch, capsys):
    def write(cells, values, path):
        raise OSError(28, "No space left on device")

    from cellseg.files import atomic_path

    def failing(cells, values, path):
        with atomic_path(path) as temporary:
            write(cells, values, temporary)

    monkeypatch.setitem(FORMATS, "labels", FORMATS["labels"].__class__(failing, ".tif"))
    assert predict(checkpoint, images, "--out", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert err.count("error: ") == 1 and "Free some space" in err and "failed" not in out


def test_the_former_form_writes_results_of_the_listed_test_images(checkpoint, synthetic_root, tmp_path, capsys):
    assert predict(checkpoint, synthetic_root, tmp_path / "out.json") == 0
    assert "out.json: " in capsys.readouterr().out
    assert {record["image_id"] for record in json.loads((tmp_path / "out.json").read_text())} <= {1, 2}
    assert predict(checkpoint, synthetic_root, tmp_path / "out.json", "--to", "labels") == 2
    assert "use --to coco --out DIR" in capsys.readouterr().err


def test_a_data_set_stands_for_its_test_images_with_their_ids(synthetic_root):
    entries = json.loads((synthetic_root / "test_image_name_to_ids.json").read_text())
    found = find_inputs([str(synthetic_root)])
    assert [(image.path.name, image.image_id) for image in found] == [
        (entry["file_name"], entry["id"]) for entry in entries
    ]


def test_words_mean_files_folders_and_patterns_each_image_once(images, tmp_path):
    found = find_inputs([str(images / "b.tif"), str(images), str(tmp_path / "**" / "*.tif")])
    assert [image.path.name for image in found] == ["b.tif", "a.tif", "c.tif"]
    assert [image.image_id for image in found] == [1, 2, 3]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_inputs([str(tmp_path / "absent.tif"), str(tmp_path / "empty"), str(tmp_path / "x*.png")])
    assert [text in problem for text, problem in zip(
        ("nothing there", "must hold images", "the pattern must match"), error.value.problems, strict=True
    )] == [True] * 3  # fmt: skip


def test_names_are_unique_whatever_the_files_are_called(tmp_path):
    paths = ["x/a.tif", "x/b.tif", "x/b.png", "y/c.tif", "z/c.tif", "y/C.tif", "z_c_tif.tif"]
    names = unique_names([tmp_path / path for path in paths])
    assert names[:3] == ["a", "b_tif", "b_png"]
    assert len({name.casefold() for name in names}) == len(names)
    assert not any("/" in name for name in names)


def test_options_that_are_wrong_are_all_named(tmp_path, capsys):
    assert main(["nothing", str(tmp_path / "no.tif"), "--to", "lables,csv", "--score", "3", "--tile", "5"]) == 2
    err = capsys.readouterr().err
    for text in ("--score", "--tile", "Did you mean 'labels'?", "no.tif"):
        assert text in err
    assert parse_kinds("csv, labels,csv") == ("csv", "labels")


def test_every_output_has_a_writer():
    assert tuple(FORMATS) == KINDS


def test_large_images_are_cut_at_the_scale_of_training(tiny_config):
    config = tiny_config(data__longer_side=500)
    assert tiled_config(config, (900, 1000), Tiling()) is config  # shrunk, as a training image of this size was
    tiled = tiled_config(config, (900, 5000), Tiling())
    assert (tiled.inference.tile, tiled.data.longer_side, tiled.data.shorter_side) == (1024, 5000, None)
    assert tiled.inference.tile_overlap == 128
    assert tiled_config(config, (900, 5000), Tiling(0)).inference.tile is None
    assert tiled_config(config, (900, 1000), Tiling(256)).inference.tile == 256
    assert tiled_config(config, (900, 1000), Tiling(64)).inference.tile_overlap == 32
    assert tiled_config(config, (200, 256), Tiling(256)) is config
    twice = tiled_config(tiny_config(data__resize="square", data__shorter_side=100), (3000, 4000), Tiling(scale=2.0))
    assert (twice.data.resize, twice.data.shorter_side, twice.data.longer_side) == ("aspect", 6000, 8000)


def test_tiles_of_a_model_that_scales_its_images_are_noted_once(tiny_config, images, tmp_path, monkeypatch):
    config = tiny_config(data__shorter_side=48)
    checkpoint = SimpleNamespace(config=config, info=SimpleNamespace(class_names=("a",), category_ids=(1,)))
    monkeypatch.setattr(folder, "load_model", lambda *arguments: object())
    monkeypatch.setattr(
        folder, "predict_images", lambda _, images, *rest, **more: [Detections.empty(images[0].shape[:2])]
    )
    for scale, notices in ((1.0, 1), (2.0, 0)):
        options = folder.Options(("labels",), 0.5, Tiling(64, scale))
        predict_one = folder._Prediction(checkpoint, tmp_path, options, torch.device("cpu"), None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for image in find_inputs([str(images)]):
                predict_one(image)
        assert sum("shorter side of 48 px" in str(warning.message) for warning in caught) == notices


def test_in_tiles_each_cell_is_found_once_and_progress_is_told(checkpoint, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 255, (200, 260, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", image, photometric="rgb")
    out = tmp_path / "out"
    options = ("--out", out, "--score", 0.05, "--tile", 64, "--to", "labels,csv")
    assert predict(checkpoint, tmp_path / "big.tif", *options) == 0
    assert "tiles" in capsys.readouterr().out
    labels_HW = tifffile.imread(out / "labels" / "big.tif")
    assert labels_HW.shape == (200, 260)
    assert len(np.unique(labels_HW)) - 1 == len((out / "cells.csv").read_text().splitlines()) - 1 > 10


MEASURED = """
import resource, sys
from pathlib import Path
from cellseg.checkpoint import open_checkpoint
from cellseg.inference.image import load_model
from cellseg.inference.outputs import folder, writers
from cellseg.predict import main
model = load_model(open_checkpoint(Path(sys.argv[1])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = main(sys.argv[1:])
print("GROWTH", status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_huge_image_stays_within_four_gigabytes(checkpoint, tmp_path, dtype):
    rng = np.random.default_rng(0)
    side = 10_000
    values = rng.integers(0, 200, (side, side), dtype=np.uint8).astype(dtype) * (1 if dtype == np.uint8 else 257)
    tifffile.imwrite(tmp_path / "huge.tif", values)
    words = [checkpoint, tmp_path / "huge.tif", "--to", "labels,csv,coco", "--out", tmp_path / "out", "--score", "0.05"]
    command = [sys.executable, "-c", MEASURED, *map(str, words), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2900)
    assert done.returncode == 0, done.stderr
    status, kilobytes = done.stdout.split("GROWTH ")[1].split()
    assert status == "0" and int(kilobytes) < 4_000_000, done.stdout
    assert "of 144 tiles" in done.stdout
    labels_HW = tifffile.imread(tmp_path / "out" / "labels" / "huge.tif")
    records = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert labels_HW.shape == (side, side)
    assert len(records) == labels_HW.max() == np.count_nonzero(np.bincount(labels_HW.ravel())[1:]) > 500
