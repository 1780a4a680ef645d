"""The reports' tables in spaces/reports/: whole, faithful, and one of their kind from end to end."""

from pathlib import Path
from typing import Any

import pytest

from search.ablation import load_ablation
from search.run import main
from search.storage.store import StudyStore
from search.views.study_report import study_report

FOLDER = Path(__file__).parents[2] / "spaces" / "reports"

# What the reports say: row -> the figures, in the order of its columns.
REPORTED = {
    "schedulers_anchors": {
        "default": (0.3215, 0.3252),
        "warmUp": (0.3311, 0.3748),
        "warmUp_smallAnchor": (0.3383, 0.3778),
        "warmUp_smallAnchor_v2": (0.3325, 0.3599),
        "warmUp_smallAnchor_gray": (0.3001, 0.3537),
        "warmUp_smallAnchor_light": (0.3314, 0.3781),
    },
    "augmentation_freezing": {
        "Res50": (0.4699, 0.3640, 0.3108),
        "Aug.": (0.4555, 0.3532, 0.3663),
        "Elastic": (0.4392, 0.3383, 0.3671),
        "Partial": (0.4912, 0.3271, 0.3608),
        "Partial+Aug.": (0.4906, 0.3606, 0.3827),
        "Partial+Elastic": (0.4855, 0.3391, 0.3853),
        "full fine-tuning": (0.3460,),
        "warm restarts": (0.4411, 0.3471, 0.3142),
        "frozen ResNet-101": ("in a figure",),
        "frozen ResNeXt-50": ("in a figure",),
    },
    "version_batch": {
        "v1/1": (0.3461, 0.3652),
        "v1/2": (0.3020, 0.3563),
        "v2/1": (0.0761, 0.1214),
        "v2/2": (0.3078, 0.3160),
        "without normalisation": (0.3461, 0.3652),
        "with normalisation": (0.3243, 0.3606),
        "best epoch 7": (0.4075,),
    },
    "backbone_attention": {
        "ResNet50": (0.3403,),
        "ResNet50 SE": (0.3405,),
        "ResNet50 CBAM": (0.3617,),
        "ResNet50V2": (0.348,),
        "ResNet50V2 SE": (0.3486,),
        "ResNet50V2 CBAM": (0.3288,),
        "ResNeXt50-32x4d CBAM": (0.3413,),
        "EfficientNet-B0": (0.2682,),
        "ResNet101": ("out of memory",),
        "EfficientNet-B1": ("tried",),
    },
    "resize_threshold": {
        "256": ("no number",),
        "400": ("no number",),
        "512": ("best",),
        "1024": ("no number",),
        "score 0.5": (3669,),
        "score 0.55": (3315,),
        "score 0.6": (2931,),
    },
}

# Where the settings of a row are: what the report's name for it means.
MEANT: dict[tuple[str, str], dict[str, Any]] = {
    ("schedulers_anchors", "default"): {"optim.schedule": "step", "optim.step_epochs": 3, "optim.gamma": 0.1},
    ("schedulers_anchors", "warmUp"): {"optim.optimizer": "sgd", "optim.lr": 0.005, "optim.warmup_fraction": 0.05},
    ("schedulers_anchors", "warmUp_smallAnchor"): {"model.anchors": "4-64", "model.roi_levels": "0,1,2,3"},
    ("schedulers_anchors", "warmUp_smallAnchor_v2"): {"model.anchors": "2-64", "model.detector": "v2"},
    ("schedulers_anchors", "warmUp_smallAnchor_gray"): {"data.color": "grey"},
    ("schedulers_anchors", "warmUp_smallAnchor_light"): {"model.roi_levels": "0,1"},
    ("augmentation_freezing", "Res50"): {"model.frozen_stages": 5, "data.num_folds": 5, "optim.schedule": "cosine"},
    ("augmentation_freezing", "Partial+Elastic"): {"model.frozen_stages": 4, "augment.preset": "reported-elastic"},
    ("augmentation_freezing", "full fine-tuning"): {"model.frozen_stages": 0, "augment.preset": "none"},
    ("augmentation_freezing", "frozen ResNet-101"): {"model.backbone": "resnet101", "model.frozen_stages": 5},
    ("version_batch", "v2/1"): {"model.detector": "v2", "train.batch_size": 1, "data.train_on": "all"},
    ("version_batch", "v1/2"): {"model.detector": "v1", "train.batch_size": 2, "model.normalization": "none"},
    ("version_batch", "without normalisation"): {"model.normalization": "none", "optim.plateau_patience": 3},
    ("version_batch", "with normalisation"): {"model.normalization": "imagenet"},
    ("version_batch", "best epoch 7"): {"train.epochs": 7},
    ("backbone_attention", "ResNet50V2 CBAM"): {"model.detector": "v2", "model.attention": "cbam"},
    ("backbone_attention", "ResNet50"): {"optim.plateau_patience": 31, "train.stop_after_decays": 3},
    ("backbone_attention", "EfficientNet-B0"): {"model.backbone": "efficientnet_b0", "optim.schedule": "constant"},
    ("resize_threshold", "1024"): {"data.resize": "square", "data.shorter_side": 1024, "train.batch_size": 1},
    ("resize_threshold", "score 0.55"): {"inference.score_threshold": 0.55, "data.shorter_side": 512},
}


def test_there_is_a_file_for_each_table():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == REPORTED.keys()


@pytest.mark.parametrize("name", REPORTED)
def test_every_row_stands_there_with_its_figures(name):
    table = load_ablation(FOLDER / f"{name}.yaml")
    assert {row: tuple(content.reported.values()) for row, content in table.rows.items()} == REPORTED[name]


@pytest.mark.parametrize(("name", "row"), MEANT)
def test_a_row_has_the_settings_that_its_name_says(name, row):
    config = load_ablation(FOLDER / f"{name}.yaml").row_config(row).to_flat()
    meant = MEANT[name, row]
    assert {key: config[key] for key in meant} == meant


def test_settings_without_effect_are_told_where_the_original_code_had_them():
    table = load_ablation(FOLDER / "schedulers_anchors.yaml")
    swallowed = [name for name, row in table.rows.items() if "swallow" in (row.without_effect or "")]
    assert swallowed == [name for name in table.rows if table.row_config(name).model.anchors != "32-512"]


@pytest.mark.parametrize("name", REPORTED)
def test_a_dry_run_says_what_sets_the_rows_apart_and_builds_their_models(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(FOLDER / f"{name}.yaml"), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    table = load_ablation(FOLDER / f"{name}.yaml")
    assert err == ""
    assert out.startswith(f"study {name}\n{table.direction} {table.metric}: {len(table.trained_rows)} rows x 3 repeats")
    assert all(f"\n{row} " in out for row in table.rows)
    *_, models, weights = out.splitlines()
    assert models.startswith("models: ")
    assert weights.startswith("weights: ")
    assert not list(tmp_path.iterdir())


TINY = (
    "model.backbone=resnet10t",
    "model.weights=none",
    "model.norm=auto",
    "model.fpn_channels=8",
    "model.box_head_width=16",
    "model.mask_head_layers=1",
    "model.mask_head_width=8",
    "model.rpn_proposals=20",
    "model.roi_samples=8",
    "data.shorter_side=null",
    "resources.cpu=1",
    "data.generate={train: 10, test: 3, seed: 1, size: 64}",
    "repeats=2",
)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_table_runs_from_end_to_end_and_prints_itself(workplace):
    command = ["search.run", str(FOLDER / "schedulers_anchors.yaml"), "--epochs", "2"]
    command += [part for setting in TINY for part in ("--set", setting)]
    one = workplace.run(*command, "--rows", "warmUp")
    assert one.returncode == 0, one.stdout + one.stderr
    done = workplace.run(*command, "--rows", "warmUp,warmUp_smallAnchor_light")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Reported settings that could not have had an effect in the original code:" in done.stdout
    assert done.stdout.endswith("This table again: python -m search.report --study schedulers_anchors\n")

    store = StudyStore.open(workplace.folder / "results" / "schedulers_anchors")
    rows = store.trials()
    assert [(row.state, row.epochs) for row in rows] == [("COMPLETE", 2)] * 4, "those of the first command stand"
    assert [row.seed for row in rows] == [0, 1, 0, 1]

    report = workplace.run("search.report", "--markdown", "table.md")
    assert report.returncode == 0, report.stdout + report.stderr
    shown = dict(line.split(maxsplit=1) for line in report.stdout.splitlines() if line.startswith("warmUp"))
    assert shown["warmUp"].startswith("0.3311") and shown["warmUp"].endswith("2 of 2")
    assert shown["warmUp"].count(" (2)") == 2 and "±" in shown["warmUp"], "two measured columns of two runs each"
    assert shown["warmUp_smallAnchor_gray"].endswith("0 of 2")
    assert "all rows have model.backbone=resnet10t" in report.stdout
    assert (workplace.folder / "table.md").read_text() == study_report(store).markdown()
    again = workplace.run(*command, "--rows", "warmUp")
    assert again.returncode == 0
    assert again.stdout.startswith(
        "study 'schedulers_anchors' has finished its 2 trials; run more with --set repeats=N\n"
    )
