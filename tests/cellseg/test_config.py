"""Configs: what is taken, what is refused and in which words."""

import json

import pytest

from cellseg.config import FIELDS, TrialConfig, check_value, flatten, parse_overrides, unknown_key
from cellseg.errors import UserError


def problems_of(flat, where="config") -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        TrialConfig.from_flat(flat, where)
    return raised.value.problems


def test_the_defaults_are_valid():
    assert TrialConfig.from_flat({}) == TrialConfig()


def test_every_default_passes_the_check_of_its_own_field():
    assert [key for key, value in TrialConfig().to_flat().items() if check_value(key, value)] == []


def test_every_field_has_a_description_of_what_it_means():
    assert [key for key, field in FIELDS.items() if not field.description] == []
    assert list(FIELDS) == list(TrialConfig().to_flat())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.lr", 1),  # an integer is a fine float
        ("data.shorter_side", None),
        ("optim.clip_norm", None),
        ("train.patience", None),
        ("model.detections_per_image", 1),
        ("model.detections_per_image", "auto"),
        ("model.anchors", "2-64"),
        ("model.weights", "some/folder"),
        ("augment.strength", 0),
        ("data.root", "anywhere"),
        ("model.backbone", "timm:convnextv2_atto.fcmae_ft_in1k"),
        ("model.normalization", "0.7,0.6,0.5/0.2,0.2,0.1"),
        ("train.metric", "loss/validation"),
        ("train.stop_after_decays", None),
        ("loss.objectness", 0),
    ],
)
def test_a_good_value_arrives(key, value):
    assert TrialConfig.from_flat({key: value}).to_flat()[key] == value


@pytest.mark.parametrize(
    ("flat", "problem"),
    [
        ({"optim.lr": 0}, "config: optim.lr: must be greater than 0, but got 0."),
        ({"optim.lr": "1e-3"}, "config: optim.lr: must be a valid number, but got '1e-3'."),
        ({"optim.lr": True}, "config: optim.lr: must be a valid number, but got True."),
        ({"optim.lr": float("inf")}, "config: optim.lr: must be a finite number, but got inf."),
        ({"optim.weight_decay": float("nan")}, "config: optim.weight_decay: must be a finite number, but got nan."),
        ({"optim.momentum": 1.0}, "config: optim.momentum: must be less than 1, but got 1.0."),
        ({"train.epochs": 0}, "config: train.epochs: must be greater than or equal to 1, but got 0."),
        ({"train.epochs": 2.0}, "config: train.epochs: must be a valid integer, but got 2.0."),
        ({"train.seed": -1}, "config: train.seed: must be greater than or equal to 0, but got -1."),
        ({"train.seed": 2**32}, "config: train.seed: must be less than 4294967296, but got 4294967296."),
        ({"data.split_seed": -1}, "config: data.split_seed: must be greater than or equal to 0, but got -1."),
        ({"train.metric": "AP"}, "config: train.metric: must be 'segm/AP'"),
        ({"model.backbone": "resnet5"}, "config: model.backbone: must be timm:NAME or one of resnet10t, resnet18, "),
        ({"model.backbone": "timm:"}, "but got 'timm:'."),
        ({"model.backbone": "timm:a/b"}, "but got 'timm:a/b'."),
        (
            {"model.deformable_stages": 4},
            "config: model.deformable_stages: must be less than or equal to 3, but got 4.",
        ),
        (
            {"model.normalization": "mean"},
            "config: model.normalization: must be imagenet, dataset, none or R,G,B/R,G,B",
        ),
        ({"model.anchor_ratios": "2,1"}, "config: model.anchor_ratios: must be rising positive ratios like '0.5,1,2'"),
        ({"inference.scales": "0,1"}, "config: inference.scales: must be rising positive factors like '0.5,1,2'"),
        ({"loss.dice": -0.1}, "config: loss.dice: must be greater than or equal to 0, but got -0.1."),
        ({"data.train_scale_min": 0}, "config: data.train_scale_min: must be greater than 0, but got 0."),
        ({"data.train_scale_min": 1.1}, "data.train_scale_min: must be less than or equal to 1, but got 1.1."),
        ({"data.train_on": "test"}, "config: data.train_on: must be 'folds', 'all' or 'unvalidated', but got 'test'."),
        ({"model.fpn_channels": 12}, "config: model.fpn_channels: must be a multiple of 8, but got 12."),
        ({"model.frozen_stages": 6}, "config: model.frozen_stages: must be less than or equal to 5, but got 6."),
        (
            {"model.fpn_channels": 10**9},
            "config: model.fpn_channels: must be less than or equal to 4096, but got 1000000000.",
        ),
        ({"model.detections_per_image": 0}, "greater than or equal to 1 or must be 'auto', but got 0."),
        ({"model.weights": 3}, "config: model.weights: must be a valid string, but got 3."),
        ({"model.anchors": "8-100"}, "config: model.anchors: SMALLEST must double at least four times"),
        ({"inference.mask_threshold": 0}, "config: inference.mask_threshold: must be greater than 0, but got 0."),
        ({"data.crop": 31}, "config: data.crop: must be greater than or equal to 32, but got 31."),
    ],
)
def test_a_bad_value_is_one_line_that_names_key_law_and_value(flat, problem):
    (line,) = problems_of(flat)
    assert problem in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.lrr", "Did you mean 'optim.lr'?"),
        ("lr", "Did you mean 'optim.lr'?"),
        ("train.lr", "Did you mean 'optim.lr'?"),
        ("model.backbon", "Did you mean 'model.backbone'?"),
        ("model", "must be a config field"),
        ("qqqqqqq", "`python -m cellseg.config` lists the fields."),
    ],
)
def test_an_unknown_key_names_the_nearest_field(key, hint):
    assert hint in str(unknown_key(key))
    (line,) = problems_of({key: 1}, "a.yaml")
    assert line.startswith(f"a.yaml: {key}: must be a config field, but got an unknown name.")


def test_a_known_key_is_no_problem():
    assert unknown_key("optim.lr") is None


def test_all_problems_are_told_at_once():
    flat = {"optim.lr": -1, "optim.lrr": 1, "train.epochs": "x", "data.fold": 9, "model.anchors": "x"}
    lines = problems_of(flat, "a.yaml")
    assert len(lines) == len(flat)
    assert all(line.startswith("a.yaml: ") for line in lines)
    for key in flat:
        assert sum(f"a.yaml: {key}: " in line for line in lines) == 1


def test_flat_and_json_are_round_trips():
    config = TrialConfig.from_flat({"optim.lr": 0.1, "model.detections_per_image": 7, "data.shorter_side": 64})
    assert TrialConfig.from_flat(config.to_flat()) == config
    assert TrialConfig.from_flat(json.loads(json.dumps(config.to_flat()))) == config


def test_nested_and_dotted_keys_may_be_mixed():
    nested = {"optim": {"lr": 0.5, "schedule": "step"}, "train.seed": 3}
    config = TrialConfig.from_flat(flatten(nested, "a.yaml"))
    assert config == TrialConfig.from_flat({"optim.lr": 0.5, "optim.schedule": "step", "train.seed": 3})


def test_flatten_goes_into_the_parts_and_no_deeper():
    assert flatten({"optim": {"lr": {"low": 1}}, "other": {"a": 1}, "augment": {}}, "x") == {
        "optim.lr": {"low": 1},
        "other": {"a": 1},
    }


@pytest.mark.parametrize(
    ("nested", "match"),
    [
        ([1], "x: must be a mapping of settings, but got list."),
        ("text", "x: must be a mapping of settings, but got str."),
        ({"optim": {"lr": 1}, "optim.lr": 2}, "x: optim.lr: must be set once, but got it nested and dotted."),
    ],
)
def test_flatten_refuses_what_is_no_settings(nested, match):
    with pytest.raises(UserError, match=match):
        flatten(nested, "x")


def test_replace_gives_a_validated_copy_and_leaves_the_original():
    config = TrialConfig()
    assert config.replace(optim__lr=0.5).optim.lr == 0.5
    assert config == TrialConfig()
    with pytest.raises(UserError, match=r"optim\.lr: must be greater than 0"):
        config.replace(optim__lr=-1)
    with pytest.raises(UserError, match=r"optim\.lrr: must be a config field"):
        config.replace(optim__lrr=1)


def test_configs_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrialConfig().optim.lr = 1.0


def test_overrides_are_yaml_values():
    assert parse_overrides(["optim.lr=1e-3", " model.anchors = 8-128", "data.crop=null", "a.b=x=y", "c="]) == {
        "optim.lr": 1e-3,
        "model.anchors": "8-128",
        "data.crop": None,
        "a.b": "x=y",
        "c": None,
    }


def test_every_bad_override_is_told():
    with pytest.raises(UserError) as raised:
        parse_overrides(["optim.lr", "=1", "a=[1", "b=2024-99-99", "good=1"])
    assert [line.split(" must be ")[0] for line in raised.value.problems] == [
        "--set:",
        "--set:",
        "--set a:",
        "--set b:",
    ]


def test_check_value_looks_at_one_field_alone():
    assert check_value("data.fold", 7) is None  # num_folds is judged with it, later
    assert check_value("model.norm", "group") is None
    assert check_value("model.weights", "coco") is None
    assert str(check_value("data.fold", -1)) == "data.fold: must be greater than or equal to 0, but got -1."
    assert str(check_value("model.anchors", "x")) == (
        "model.anchors: must be 'auto' or SMALLEST-LARGEST like '8-128', but got 'x'."
    )
    assert str(check_value("model.detections_per_image", "x")) == (
        "model.detections_per_image: must be a valid integer or must be 'auto', but got 'x'."
    )
