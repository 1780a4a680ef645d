"""Rules over several fields, the small languages of single ones, and which fields matter when."""

from typing import Any, get_args

import pytest

from cellseg.config import (
    ACTIVE_WHEN,
    BACKBONES,
    CONVNEXTS,
    EFFICIENTNETS,
    FIELDS,
    METRICS,
    MINIMIZED,
    RESNETS,
    AnyBut,
    AugmentConfig,
    OneOf,
    TrialConfig,
    check_value,
    gain,
    parse_anchor_range,
    parse_normalization,
    parse_numbers,
)
from cellseg.config.__main__ import main
from cellseg.errors import UserError

RULES: list[tuple[dict[str, Any], str]] = [
    (
        {"data.fold": 5},
        "data.fold: fold < num_folds must hold, but got fold=5, num_folds=5. Folds are numbered from 0.",
    ),
    (
        {"data.shorter_side": 2000},
        "data.shorter_side: shorter_side <= longer_side must hold, but got shorter_side=2000, longer_side=1333. "
        "Swap them?",
    ),
    (
        {"data.resize": "square"},
        "data.resize: square needs a side, but got shorter_side=None. Set data.shorter_side, or use aspect.",
    ),
    (
        {"inference.tile": 64},
        "inference.tile_overlap: tile_overlap < tile must hold, but got tile_overlap=64, tile=64. "
        "A quarter of the tile, or the largest cell, is enough.",
    ),
    (
        {"model.attention": "se", "model.backbone": "efficientnet_b0"},
        "model.attention: needs residual blocks, but got attention=se with backbone 'efficientnet_b0'. "
        f"Use one of {', '.join(RESNETS)}.",
    ),
    (
        {"model.attention": "cbam", "model.backbone": "timm:resnet50"},
        "model.attention: needs residual blocks, but got attention=cbam with backbone 'timm:resnet50'. "
        f"Use one of {', '.join(RESNETS)}.",
    ),
    (
        {"model.deformable_stages": 2, "model.backbone": "convnext_tiny"},
        "model.deformable_stages: needs residual blocks, but got deformable_stages=2 with backbone 'convnext_tiny'. "
        f"Use one of {', '.join(RESNETS)}.",
    ),
    (
        {"model.attention": "se", "model.frozen_stages": 5},
        "model.attention: needs a stage that trains, but got attention=se with frozen_stages=5. Freeze fewer.",
    ),
    (
        {"model.deformable_stages": 2, "model.frozen_stages": 4},
        "model.deformable_stages: these last stages must train, but got deformable_stages=2 with frozen_stages=4 of 5. "
        "Lower one.",
    ),
    (
        {"model.norm": "batch", "model.backbone": "convnext_small"},
        "model.norm: 'convnext_small' has layer norms, which stay, but got norm=batch. Use auto.",
    ),
    (
        {"model.norm": "group"},
        "model.norm: imagenet weights need batch statistics, but got norm=group. Use norm=auto, or weights=none.",
    ),
    (
        {"model.norm": "group", "model.weights": "coco"},
        "model.norm: coco weights need batch statistics, but got norm=group. Use norm=auto, or weights=none.",
    ),
    (
        {"model.weights": "coco", "model.backbone": "resnet18"},
        "model.weights: coco weights exist for backbone resnet50 only, but got 'resnet18'. Use imagenet.",
    ),
    (
        {"model.weights": "coco", "model.fpn_channels": 64, "model.mask_head_layers": 2},
        "model.weights: coco weights need the default widths, but got other values of fpn_channels, mask_head_layers. "
        "Use imagenet, or leave them out.",
    ),
    (
        {"model.weights": "coco", "model.anchor_ratios": "0.5,2"},
        "model.weights: coco weights have three aspect ratios, but got anchor_ratios=0.5,2. "
        "Give three, or use imagenet.",
    ),
]


@pytest.mark.parametrize(("flat", "problem"), RULES, ids=[" ".join(map(str, flat.values())) for flat, _ in RULES])
def test_values_that_do_not_go_together_are_one_line(flat, problem):
    with pytest.raises(UserError) as raised:
        TrialConfig.from_flat(flat, "a.yaml")
    assert raised.value.problems == (f"a.yaml: {problem}",)
    assert [key for key, value in flat.items() if check_value(key, value)] == [], "each alone is fine"


@pytest.mark.parametrize(
    "flat",
    [
        {"data.resize": "square", "data.shorter_side": 2000},  # longer_side is not for square
        {"data.shorter_side": 1333},
        {"model.attention": "cbam", "model.deformable_stages": 1, "model.frozen_stages": 4},
        {"model.deformable_stages": 3, "model.frozen_stages": 2, "model.backbone": "resnext101_32x8d"},
        {"model.backbone": "convnext_base", "model.frozen_stages": 5},
        {"model.weights": "coco", "model.detector": "v2", "model.anchor_ratios": "0.3,1,3", "model.norm": "batch"},
        {"model.norm": "group", "model.weights": "none"},
        {"model.norm": "group", "model.weights": "some/file.pt"},
    ],
)
def test_values_at_the_limit_of_a_rule_go_together(flat):
    TrialConfig.from_flat(flat)


def test_all_broken_rules_of_a_part_are_told_at_once():
    flat = {"model.attention": "se", "model.backbone": "convnext_tiny", "model.weights": "coco", "model.norm": "group"}
    with pytest.raises(UserError) as raised:
        TrialConfig.from_flat(flat)
    keys = [problem.split(": ")[1] for problem in raised.value.problems]
    assert keys == ["model.attention", "model.norm", "model.norm", "model.weights"]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("8-128", (8, 16, 32, 64, 128)),
        ("32-512", (32, 64, 128, 256, 512)),
        ("2-64", (2, 4, 8, 16, 32, 64)),
        ("3-48", (3, 6, 12, 24, 48)),
    ],
)
def test_an_anchor_range_doubles_from_smallest_to_largest(text, sizes):
    assert parse_anchor_range(text) == sizes


@pytest.mark.parametrize("text", ["8", "8-", "-8-128", "8,128", "8 - 128", "a-b", "8.0-128"])
def test_an_anchor_range_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="must be 'auto' or SMALLEST-LARGEST"):
        parse_anchor_range(text)


@pytest.mark.parametrize("text", ["8-64", "8-100", "0-128", "0-0", "128-8", "8-8"])
def test_an_anchor_range_that_is_no_five_doublings_is_refused(text):
    with pytest.raises(ValueError, match="must double at least four times"):
        parse_anchor_range(text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1", (1.0,)), ("0.5,1,2", (0.5, 1.0, 2.0)), (" 0.75 , 1.25 ", (0.75, 1.25)), ("1e-3", (1e-3,))],
)
def test_numbers_are_a_rising_list(text, numbers):
    assert parse_numbers(text, "factors") == numbers


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "1;2", "2,1", "1,1", "0,1", "-1,1", "nan", "1,nan", "inf"])
def test_what_is_no_rising_list_of_positive_numbers_is_refused(text):
    with pytest.raises(ValueError, match=r"must be rising positive factors like '0\.5,1,2', but got '"):
        parse_numbers(text, "factors")


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("none", (0, 0, 0), (1, 1, 1)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.7,0,1/0.2,1,1e-3", (0.7, 0, 1), (0.2, 1, 1e-3)),
    ],
)
def test_a_normalization_is_mean_and_standard_deviation(text, mean, std):
    assert parse_normalization(text) == (mean, std)


@pytest.mark.parametrize(
    "text",
    [
        "dataset",
        "",
        "0.5,0.5,0.5",
        "0.5,0.5/0.2,0.2",
        "0.5,0.5,0.5/0.2,0.2",
        "0.5,0.5,0.5/0.2,0.2,0.2/1",
        "1.5,0.5,0.5/0.2,0.2,0.2",
        "0.5,0.5,0.5/0,0.2,0.2",
        "0.5,0.5,nan/0.2,0.2,0.2",
        "a,b,c/1,1,1",
    ],
)
def test_what_is_no_mean_and_deviation_of_three_channels_is_refused(text):
    with pytest.raises(ValueError, match="must be imagenet, dataset, none or R,G,B/R,G,B"):
        parse_normalization(text)


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [("segm/AP50", 0.3, 0.3), ("segm/AP@all", 0.0, 0.0), ("loss/validation", 0.3, -0.3), ("accuracy", 0.3, 0.3)],
)
def test_a_gain_is_larger_where_the_metric_is_better(metric, value, expected):
    assert gain(metric, value) == expected
    assert gain(metric, gain(metric, value)) == value


def test_metric_names_are_those_that_evaluation_returns_and_the_validation_loss():
    from cellseg.evaluate import evaluate

    assert {"loss/validation"} == MINIMIZED
    assert set(METRICS) - MINIMIZED <= set(evaluate([], [], []))


def test_conditions_name_real_fields_and_values_of_which_some_hold_and_some_do_not():
    for key, conditions in ACTIVE_WHEN.items():
        assert conditions
        for other, condition in conditions.items():
            assert {key, other} <= FIELDS.keys()
            assert key != other
            named = condition if isinstance(condition, OneOf) else condition.values
            assert named
            assert [value for value in named if check_value(other, value)] == []
            assert all((value in condition) == isinstance(condition, OneOf) for value in named)


def test_conditions_are_containers_that_read_well():
    assert "sgd" in OneOf({"sgd"})
    assert "adamw" not in OneOf({"sgd"})
    assert str(OneOf({"se", "cbam"})) == "cbam or se"
    assert 4 in AnyBut(frozenset({5}))
    assert 5 not in AnyBut(frozenset({5}))
    assert str(AnyBut(frozenset({"none", "flips"}))) == "anything but flips or none"


def test_the_augmentation_strength_matters_for_all_presets_that_have_ranges():
    presets = get_args(AugmentConfig.model_fields["preset"].annotation)
    condition = ACTIVE_WHEN["augment.strength"]["augment.preset"]
    fixed = {"none", "flips", "reported-aug", "reported-elastic"}
    assert {preset for preset in presets if preset not in condition} == fixed < set(presets)


def test_attention_matters_for_the_resnet_family_and_norms_for_all_but_the_convnexts():
    matters = {key: ACTIVE_WHEN[key]["model.backbone"] for key in ("model.attention", "model.norm")}
    assert {name for name in BACKBONES if name in matters["model.attention"]} == set(RESNETS)
    assert {name for name in BACKBONES if name in matters["model.norm"]} == {*RESNETS, *EFFICIENTNETS}
    assert set(BACKBONES) - {*RESNETS, *EFFICIENTNETS} == set(CONVNEXTS)


def fields_printed(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_command_prints_every_field_with_its_values_default_meaning_and_conditions(capsys):
    out = fields_printed(capsys)
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == list(FIELDS)
    for expected in (
        "optim.optimizer: sgd | adamw = adamw",
        "optim.lr: float > 0 = 0.0001",
        "model.frozen_stages: int >= 0 <= 5 = 0",
        "model.fpn_channels: int >= 8 <= 4096 multiple of 8 = 256",
        "data.crop: int >= 32 | None = None",
        "model.detections_per_image: int >= 1 | auto = auto",
        "    Has an effect when optim.schedule is plateau and optim.warmup_epochs is anything but 0.",
        "    Peak learning rate.",
    ):
        assert expected in lines
    meanings = [line for line in lines if line.startswith(" ") and "Has an effect" not in line]
    assert max(map(len, meanings)) <= 112


def test_the_command_prints_one_part_alone(capsys):
    out = fields_printed(capsys, "loss")
    keys = [line.split(":")[0] for line in out.splitlines() if not line.startswith(" ")]
    assert keys == [key for key in FIELDS if key.startswith("loss.")]


def test_the_command_refuses_a_part_that_does_not_exist(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["losses"])
    assert "invalid choice: 'losses'" in capsys.readouterr().err
