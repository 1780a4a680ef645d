"""Overlap, resume, prediction and compilation on a GPU."""

from dataclasses import asdict
from functools import partialmethod
from itertools import islice

import numpy as np
import pytest
import torch
from gpu_suite import DRY_RUN

from cellseg.checkpoint import open_checkpoint
from cellseg.device import Room
from cellseg.inference.image import load_model, predict_images
from cellseg.training.fit import fit
from cellseg.training.run import TrainingRun

TIMES = ("seconds", "images_per_second", "peak_memory_bytes")
TOLERANCE = 0.0 if DRY_RUN else 0.03
"""A GPU adds in any order, and the differences grow with the steps."""


def assert_alike(ours, theirs) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(map(asdict, ours), map(asdict, theirs), strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=TOLERANCE, abs=TOLERANCE)
        assert one["metrics"]["loss/validation"] == pytest.approx(other["metrics"]["loss/validation"], rel=TOLERANCE)
        for name in one.keys() - {*TIMES, "losses", "metrics", "value", "best_value", "best_epoch"}:
            assert one[name] == other[name], name


def test_overlap_changes_no_report_and_no_checkpoint(data, config, tmp_path, device, monkeypatch):
    settings = config(train__epochs=3)
    together = list(fit(settings, data, tmp_path / "together", device=device))
    monkeypatch.setattr(TrainingRun, "overlaps", False)
    monkeypatch.setattr(TrainingRun, "saves_beside", False)
    alone = list(fit(settings, data, tmp_path / "alone", device=device))
    assert_alike(together, alone)
    one, other = (open_checkpoint(tmp_path / way / "last").load_weights() for way in ("together", "alone"))
    for name, value in one.items():
        assert torch.allclose(value.float(), other[name].float(), rtol=0.1, atol=0.02), name


def test_a_checkpoint_is_of_the_weights_that_were_validated(data, config, tmp_path, device):
    """The copy to the host is made beside the next epoch, which changes the weights."""
    settings = config(train__epochs=4)
    reports = fit(settings, data, tmp_path, device=device)
    for report in islice(reports, 3):
        model = load_model(open_checkpoint(tmp_path / "last"), device)
        run = TrainingRun(settings, data, tmp_path / "judge", device)
        figures = run.validation.start(model, run.stepper.amp_dtype, report.epoch).result()
        run.close()
        assert figures["loss/validation"] == pytest.approx(report.metrics["loss/validation"], rel=1e-3)


def test_a_killed_run_goes_on(data, config, tmp_path, device):
    settings = config(train__epochs=3, optim__ema_decay=0.8)
    whole = list(fit(settings, data, tmp_path / "whole", device=device))
    killed = fit(settings, data, tmp_path / "killed", device=device)
    before = list(islice(killed, 1))
    killed.close()
    assert_alike(before + list(fit(settings, data, tmp_path / "killed", device=device)), whole)


@pytest.mark.parametrize(
    "settings", [{}, {"inference__tile": 64, "inference__tile_overlap": 32}], ids=["whole", "tiles"]
)
def test_images_together_give_what_each_gives_alone(data, config, tmp_path, device, settings):
    settings = config(train__epochs=2, train__amp="off", inference__score_threshold=0.3, **settings)
    list(fit(settings, data, tmp_path, device=device))
    model = load_model(open_checkpoint(tmp_path / "last"), device)
    images = [data[index].image_HWC for index in range(6)]
    alone = predict_images(model, images, settings, room=Room(1))
    together = predict_images(model, images, settings)
    for one, other in zip(alone, together, strict=True):
        assert len(one) == pytest.approx(len(other), abs=2)
        if len(one) == len(other) and len(one):
            np.testing.assert_allclose(one.scores_N, other.scores_N, atol=5e-3)


def test_prediction_on_the_gpu_agrees_with_the_cpu(data, config, tmp_path, device):
    settings = config(train__epochs=2, train__amp="off", inference__score_threshold=0.3)
    list(fit(settings, data, tmp_path, device=device))
    checkpoint = open_checkpoint(tmp_path / "last")
    images = [data[index].image_HWC for index in range(3)]
    found = [predict_images(load_model(checkpoint, at), images, settings) for at in (device, "cpu")]
    for one, other in zip(*found, strict=True):
        assert len(one) == pytest.approx(len(other), abs=2)
        if len(one) == len(other) and len(one):
            np.testing.assert_allclose(one.scores_N, other.scores_N, atol=5e-3)
            np.testing.assert_allclose(one.boxes_N4, other.boxes_N4, atol=0.5)


@pytest.mark.timeout(300)
def test_a_compiled_backbone_trains_as_the_plain_one(data, config, tmp_path, device, monkeypatch):
    if DRY_RUN:  # the same graphs without the minutes in which a C++ compiler translates them
        module = torch.nn.Module
        monkeypatch.setattr(module, "compile", partialmethod(module.compile, backend="aot_eager"))
    else:
        pytest.importorskip("triton", reason="torch compiles for a GPU by Triton")
    settings = config(train__epochs=1, train__amp="off", data__crop=32 if DRY_RUN else 128)
    plain = list(fit(settings, data, tmp_path / "plain", device=device))
    compiled = list(fit(settings.replace(train__compile=True), data, tmp_path / "compiled", device=device))
    assert compiled[0].losses["loss"] == pytest.approx(plain[0].losses["loss"], rel=0.05)
