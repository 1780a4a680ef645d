"""A study as Python users read it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from fakes import METRIC, make_report, make_study

import search
from cellseg.config import TrialConfig
from cellseg.errors import UserError
from search.storage.store import StudyStore


@pytest.fixture
def results(tmp_path):
    """A study of three trials: the second is best, and the last has no epoch. momentum is searched with SGD only."""
    space = {
        "optim.optimizer": {"choices": ["adamw", "sgd"]},
        "optim.momentum": {"low": 0.8, "high": 0.98, "when": {"optim.optimizer": "sgd"}},
        "train.batch_size": {"choices": [1, 2]},
        "model.weights": "none",
    }
    starts = [
        {"optim.optimizer": name, "train.batch_size": size} for name, size in (("adamw", 1), ("sgd", 1), ("adamw", 2))
    ]
    study = make_study(tmp_path, space=space, start_from=starts)
    numbers = [study.propose().number for _ in starts]
    for number, values in zip(numbers, ([0.25], [0.5, 0.75], []), strict=True):
        for epoch, value in enumerate(values, start=1):
            report = make_report(epoch, value, **{"count/detections": 10.0 * epoch})
            study.report(number, report | {"best_value": value, "best_epoch": epoch})
    study.end(numbers[0], "epochs")
    study.interrupt()
    study.store.flush()
    return tmp_path


def test_trials_are_flat_rows_of_the_same_columns(results):
    rows = search.open_study("study", results).trial_rows
    assert [(row["number"], row["metric"], row["epochs"]) for row in rows] == [(0, 0.25, 1), (1, 0.75, 2), (2, None, 0)]
    assert len({tuple(row) for row in rows}) == 1
    assert not {"params", "config"} & set(rows[0])
    assert [row["optim.optimizer"] for row in rows] == ["adamw", "sgd", "adamw"]
    assert [row["optim.momentum"] is None for row in rows] == [True, False, True]
    assert not any(isinstance(value, (dict, list)) for row in rows for value in row.values())


def test_epochs_are_flat_rows_with_a_column_per_metric_and_loss(results):
    rows = search.open_study("study", results).epoch_rows
    assert [(row["trial"], row["epoch"], row[METRIC]) for row in rows] == [(0, 1, 0.25), (1, 1, 0.5), (1, 2, 0.75)]
    assert [row["count/detections"] for row in rows] == [10.0, 10.0, 20.0]
    assert [row["loss"] for row in rows] == [1.0, 1.0, 0.5]
    assert len({tuple(row) for row in rows}) == 1
    assert not {"metrics", "losses"} & set(rows[0])


def test_the_best_trial_has_its_value_params_and_whole_config(results):
    study = search.open_study("study", results)
    best = study.best
    assert (study.name, study.metric, best.number, best.value) == ("study", METRIC, 1, 0.75)
    assert best.params["optim.optimizer"] == "sgd"
    assert isinstance(best.config, TrialConfig)
    assert best.config.optim.optimizer == "sgd"
    assert best.config.optim.momentum == best.params["optim.momentum"]
    assert best.config.model.weights == "none"
    assert study.trial(2).value is None


def test_the_study_that_was_worked_on_last_needs_no_name(results):
    assert search.open_study(results=str(results)).name == "study"


def test_an_opened_study_is_a_snapshot(results):
    study = search.open_study("study", results)
    assert study.trials is study.trials
    store = StudyStore.open(results / "study")
    store.put_trial(replace(store.trial(2), metric=0.9))
    assert study.best.value == 0.75
    assert study.trial_rows[2]["metric"] is None
    assert search.open_study("study", results).best.number == 2


def test_what_is_not_there_is_a_sentence(results, tmp_path):
    study = search.open_study("study", results)
    with pytest.raises(UserError, match="must hold a trial 9, but got none"):
        study.trial(9)
    with pytest.raises(UserError, match=r"trial 1: its checkpoint must have been kept, but got those of"):
        study.best.model()
    with pytest.raises(UserError, match="nothing: must hold a study"):
        search.open_study("nothing", results)
    empty = make_study(tmp_path, "empty")
    empty.store.flush()
    empty = search.open_study("empty", results)
    assert empty.trial_rows == empty.epoch_rows == []
    assert len(empty.trials) == len(empty.epochs) == 0 and "number" in empty.trials and "trial" in empty.epochs
    with pytest.raises(UserError, match="must hold a trial with a value, but got none"):
        empty.best  # noqa: B018


def test_the_best_model_predicts_and_is_loaded_once(results, monkeypatch):
    import numpy as np

    from cellseg.checkpoint import save_checkpoint
    from cellseg.inference import predictor
    from cellseg.model.build import build_model

    best = search.open_study("study", results).best
    tiny = {"model.backbone": "resnet10t", "model.fpn_channels": 8, "model.anchors": "8-128", "model.box_head_width": 8}
    counts = dict.fromkeys(("model.detections_per_image", "model.rpn_candidates", "model.rpn_proposals"), 9)
    config = TrialConfig.from_flat(tiny | counts | {"model.weights": "none"})
    save_checkpoint(
        results / "study" / "checkpoints" / "t0001" / "best",
        build_model(config.model, config.inference, 2).state_dict(),
        config=config.to_flat(),
        class_names=("round", "long"),
        metric=METRIC,
        value=0.75,
        epoch=2,
        metrics={},
        parameters=1,
        data_fingerprint="0",
    )
    loads = []
    load = predictor.load
    monkeypatch.setattr(predictor, "load", lambda *arguments: loads.append(arguments) or load(*arguments))
    image_HW = np.random.default_rng(0).integers(0, 60_000, (40, 50), dtype=np.uint16)
    assert best.predict(image_HW).size == (40, 50)
    assert best.predict(image_HW[:30]).size == (30, 50)
    assert len(loads) == 1
    assert best.model("cpu").class_names == ("round", "long")


def test_rows_are_ready_for_json(results):
    study = search.open_study("study", results)
    assert json.loads(json.dumps(study.trial_rows)) == study.trial_rows


def test_data_frames_have_a_column_per_parameter_and_metric(results):
    study = search.open_study("study", results)
    assert study.trials["number"].tolist() == [0, 1, 2]
    assert study.trials["optim.optimizer"].tolist() == ["adamw", "sgd", "adamw"]
    assert study.trials.loc[1, METRIC] == study.trials.loc[1, "metric"] == 0.75
    assert study.trials.loc[1, "count/detections"] == 20.0
    assert study.trials[METRIC].isna().tolist() == [False, False, True]
    assert study.epochs[METRIC].max() == 0.75
    assert study.epochs.groupby("trial").size().to_dict() == {0: 1, 1: 2}


def test_opening_a_study_loads_no_pandas(results):
    code = (
        f"import sys, search; search.open_study('study', {str(results)!r}).trial_rows; print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "False", done.stderr
