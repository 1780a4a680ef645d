"""Words in messages: the nearest of valid values, and none where none is near; numbers with their nouns."""

import pytest

from cellseg.config import FIELDS, TrialConfig
from cellseg.errors import UserError
from cellseg.names import counted, suggested_value
from search.space import parse_space


@pytest.mark.parametrize(
    ("value", "valid", "meant"),
    [
        ("AP50", ["segm/AP", "segm/AP50", "segm/AP50@all"], "segm/AP50"),
        ("ap", ["segm/AP", "segm/AP50"], "segm/AP"),
        ("bbox/AP50", ["segm/AP", "segm/AP50"], "segm/AP50"),
        ("loss", ["segm/AP", "loss/validation"], "loss/validation"),
        ("flip", ["none", "flips", "full"], "flips"),
        ("Full", ["none", "flips", "full"], "full"),
        ("gray", ["rgb", "grey"], "grey"),
        ("warmup_cosine", ["cosine", "warmup-cosine"], "warmup-cosine"),
        (None, ["none", "se"], "none"),
    ],
)
def test_the_nearest_value_is_suggested(value, valid, meant):
    assert suggested_value(value, valid) == f"Did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("value", "valid"), [("v3", ["v1", "v2"]), ("upwards", ["maximize"]), (3, ["auto"]), (None, ["max"]), ("", ["a"])]
)
def test_far_values_get_no_suggestion(value, valid):
    assert suggested_value(value, valid) == ""


def test_a_word_that_yaml_reads_as_a_boolean_is_explained():
    assert suggested_value(False, ["off", "bf16"]) == "YAML reads off as false: write 'off' in quotes."
    assert suggested_value(True, ["off", "bf16"]) == ""


def problems(metric="segm/AP50", **space):
    content = {"metric": metric, "direction": "maximize", "trials": 1, "epochs": 1}
    sampled = {"optim.lr": {"low": 1e-4, "high": 1e-2}}
    with pytest.raises(UserError) as raised:
        parse_space(content | {"space": sampled | space}, "a.yaml")
    return raised.value.problems


def test_config_settings_choices_and_fixed_values_of_a_space_suggest_alike():
    with pytest.raises(UserError, match=r"augment.preset: must be .*, but got 'flip'. Did you mean 'flips'\?"):
        TrialConfig.from_flat({"augment.preset": "flip"})
    assert problems(metric="AP50")[0].endswith("but got 'AP50'. Did you mean 'segm/AP50'?")
    for value in ("flip", {"choices": ["none", "flip"]}):
        (line,) = problems(**{"augment.preset": value})
        assert line.startswith("a.yaml: augment.preset: must be 'none', ")
        assert line.endswith("but got 'flip'. Did you mean 'flips'?")


def test_values_that_are_checked_by_a_rule_suggest_too():
    with pytest.raises(UserError, match="Did you mean 'resnet50'\\?"):
        TrialConfig.from_flat({"model.backbone": "ResNet-50"})


def test_every_default_is_suggested_for_itself_in_capitals():
    """The words of every field with a list of values are read out of pydantic's findings."""
    missed = []
    for key, field in FIELDS.items():
        default = field.default
        if "Literal" not in str(field.annotation) or not isinstance(default, str):
            continue
        with pytest.raises(UserError) as raised:
            TrialConfig.from_flat({key: default.upper() + "~"})
        if f"Did you mean '{default}'?" not in str(raised.value) and len(default) > 2:
            missed.append(key)
    assert missed == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 trials"), (1, "1 trial"), (2, "2 trials"), (1200, "1,200 trials"), (1.0, "1 trial")]
)
def test_one_is_singular_and_all_else_plural(count, text):
    assert counted(count, "trial") == text


def test_parts_and_irregular_plurals():
    assert counted(0.5, "GPU") == "0.5 GPUs"
    assert counted(2, "class", plural="classes") == "2 classes"
