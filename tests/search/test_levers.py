"""What an export adds to the best trial, with the gain of each step; no search has to run for it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import finish, make_report, make_study, told

from cellseg.checkpoint import save_checkpoint
from cellseg.config import TrialConfig
from cellseg.data.detections import Detections
from cellseg.data.packed import PackedDataset, open_packed
from cellseg.data.softmask import SoftMask
from cellseg.data.synthetic import generate_dataset
from cellseg.model.build import build_model
from search import levers as module
from search.export import main
from search.storage import validation

pytestmark = pytest.mark.timeout(300)

SETTINGS = {
    "data.num_folds": 2,
    "model.backbone": "resnet10t",
    "model.weights": "none",
    "model.fpn_channels": 16,
    "model.box_head_width": 32,
    "model.mask_head_layers": 1,
    "model.mask_head_width": 16,
    "model.rpn_candidates": 50,
    "model.rpn_proposals": 50,
    "model.anchors": "4-64",
    "model.detections_per_image": 20,
    "inference.score_threshold": 0.0,
    "inference.mask_pasting": "model",
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("levers") / "data"
    generate_dataset(root, train=24, test=2, seed=0, size=64)
    return root


@pytest.fixture
def results(tmp_path, data_root):
    """A study of three trials with checkpoints of models that were never trained; the second one ranks first."""
    results = tmp_path / "results"
    config = TrialConfig.from_flat(SETTINGS | {"data.root": str(data_root)})
    data = open_packed(config.data)
    study = make_study(results, keep=3)
    study.store.write_study(study.store.study | {"data_root": str(data_root)})
    for value in (0.4, 0.6, 0.5):
        number = study.propose().number
        study.report(number, make_report(1, value, ending=told("epochs")))
        torch.manual_seed(number)
        model = build_model(config.model, config.inference, data.num_classes)
        save_checkpoint(
            study.store.checkpoint_folder(number) / "best",
            model.state_dict(),
            config=config.to_flat(),
            class_names=data.class_names,
            category_ids=data.category_ids,
            metric="segm/AP50",
            value=value,
            epoch=1,
            metrics={},
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            data_fingerprint=data.fingerprint,
        )
        finish(study, number, "epochs")
    study.store.flush()
    return results


@pytest.fixture
def scripted(monkeypatch):
    """Lets each trial find the share of the true cells that ``script`` says: (number, whether turned) -> share."""

    def install(script):
        def predictions(bench, candidate, config):
            share = script(candidate.number, config.inference.turns != "none")
            return [soft(truth.select(np.arange(round(share * len(truth))))) for truth in bench.scorer.truths]

        monkeypatch.setattr(module._Bench, "predictions", predictions)

    return install


def soft(found: Detections) -> Detections:
    from cellseg.data.rle import decode

    masks = tuple(SoftMask.of(decode(rle).astype(np.float32), 0, 0, found.size) for rle in found.rles)
    return Detections(found.size, found.boxes_N4, found.scores_N, found.labels_N, found.rles, masks)


def export(results, out, *arguments) -> int:
    words = ["--best", "--results", results, "--out", out, "--device", "cpu", *arguments]
    return main([str(word) for word in words])


def test_all_levers_together_export_a_valid_file_and_store_what_they_predicted(results, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert export(results, out, "--calibrate", "--tta", "flips", "--top-k", "2") == 0
    printed = capsys.readouterr().out
    assert "search winner, trial t0001" in printed and "+ calibration" in printed
    assert (
        "+ exact masks" in printed
        and "+ TTA flips" in printed
        and "+ ensemble of 2" in printed
        and "parameters: " in printed
    )
    assert "validated with pycocotools" in printed and "take scores of at least: class1 " in printed
    assert "which gives F1 0." in printed and "cells an image" in printed
    stored = sorted((results / "study" / "validation").iterdir())
    assert [path.name[:5] for path in stored] == ["t0001"] * 3 + ["t0002"]  # loosely twice, in all views; the member
    times = [path.stat().st_mtime_ns for path in stored]
    first = json.loads(out.read_text())
    assert export(results, out, "--calibrate", "--tta", "flips", "--top-k", "2") == 0
    assert json.loads(out.read_text()) == first
    assert sorted((results / "study" / "validation").iterdir()) == stored
    assert [path.stat().st_mtime_ns for path in stored] == times


def test_without_levers_nothing_is_validated(results, tmp_path, capsys):
    assert export(results, tmp_path / "out.json") == 0
    assert "+" not in capsys.readouterr().out
    assert not (results / "study" / "validation").exists()


def test_auto_takes_what_gains_and_leaves_out_the_rest(results, tmp_path, capsys, scripted):
    # The winner finds half of the cells, in all views fewer. Trial 2 finds all of them.
    scripted(lambda number, turned: {1: 0.25 if turned else 0.5, 2: 1.0, 0: 0.0}[number])
    assert export(results, tmp_path / "out.json", "--auto") == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "nothing changed" in lines["+ calibration"]
    assert "left out" in lines["+ TTA flips,rot90"]
    assert "t0001 x 1, t0002 x" in lines["+ ensemble of 3"] and "t0000" not in lines["+ ensemble of 3"]
    values = [float(line.split("segm/AP50 ")[1][:6]) for name, line in lines.items() if name.startswith("+")]
    start = float(lines["search winner, trial t0001"].split("segm/AP50 ")[1][:6])
    assert "left out" in lines["+ exact masks"]
    assert start == values[0] == values[1] == values[2] < values[3]
    assert " + " in lines[next(name for name in lines if name.startswith("parameters"))]


def test_what_was_asked_for_is_used_even_where_it_loses_and_that_is_said(results, tmp_path, capsys, scripted):
    scripted(lambda _, turned: 0.25 if turned else 0.5)
    assert export(results, tmp_path / "out.json", "--tta", "rot90") == 0
    assert "--auto would leave it out" in capsys.readouterr().out


def test_too_many_parameters_are_refused_and_auto_tries_fewer_models(results, tmp_path, capsys, scripted):
    scripted(lambda *_: 0.5)
    limit = sum(p.numel() for p in build_model(*_model_settings(), 4).parameters()) + 1
    assert export(results, tmp_path / "out.json", "--top-k", "3", "--max-params", limit) == 2
    error = capsys.readouterr().err
    assert f"at most {limit:,} parameters, but got {3 * (limit - 1):,} ({limit - 1:,} + " in error
    assert not (tmp_path / "out.json").exists()
    assert export(results, tmp_path / "out.json", "--max-params", 5) == 2
    assert export(results, tmp_path / "out.json", "--auto", "--max-params", limit) == 0
    assert f"parameters: {limit - 1:,}\n" in capsys.readouterr().out


def _model_settings():
    config = TrialConfig.from_flat(SETTINGS)
    return config.model, config.inference


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--tta", "flip"], "--tta: must be some of flips, rot90, scales"),
        (["--top-k", "0"], "--top-k: must be at least 1, with --best, but got --top-k 0"),
    ],
)
def test_wrong_options_are_named(results, tmp_path, capsys, arguments, error):
    assert export(results, tmp_path / "out.json", *arguments) == 2
    assert error in capsys.readouterr().err


def test_without_the_training_images_settings_cannot_be_chosen_but_views_can_be_fused(
    results, tmp_path, capsys, monkeypatch
):
    from cellseg.errors import UserError

    def absent(_):
        raise UserError("data: must be there, but got nothing.")

    monkeypatch.setattr(validation, "open_packed", absent)
    assert export(results, tmp_path / "out.json", "--calibrate") == 2
    assert "must be there" in capsys.readouterr().err
    assert export(results, tmp_path / "out.json", "--tta", "flips", "--top-k", "2") == 0
    assert "no validation figures: data: must be there" in capsys.readouterr().out


def test_gains_are_measured_on_the_validation_images_that_the_data_give(data_root):
    config = TrialConfig.from_flat(SETTINGS | {"data.root": str(data_root)})
    packed = open_packed(config.data)
    given = [index in (3, 17) for index in range(len(packed))]
    metadata = {**packed.table.schema.metadata, b"validation": json.dumps(given).encode()}
    data = PackedDataset(packed.table.replace_schema_metadata(metadata))
    candidate = SimpleNamespace(checkpoint=SimpleNamespace(config=config.replace(data__validation="given")))
    assert module._Bench._validation(SimpleNamespace(data=data), candidate) == (3, 17)
