"""What the command line changes of a space."""

import pytest
from spacefiles import FULL, HEAD

from cellseg.errors import UserError
from search.space import Range, load_space


def test_overrides_set_settings_and_fix_keys(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(FULL)
    space = load_space(path, ["trials=3", "asha.grace=2", "optim.lr=1e-3", "model.detector=v2", "train.workers=2"])
    assert (space.trials, space.asha.grace, space.asha.reduction) == (3, 2, 3)
    assert "optim.lr" not in space.domains
    assert space.fixed["optim.lr"] == 1e-3
    assert space.fixed["model.detector"] == "v2"
    assert space.start_from == ({"optim.optimizer": "sgd", "optim.momentum": 0.9},), "nothing is left of the first"


@pytest.mark.parametrize(("value", "momentum_is_sampled"), [("sgd", True), ("adamw", False)])
def test_an_override_of_a_condition_resolves_it(tmp_path, value, momentum_is_sampled):
    path = tmp_path / "a.yaml"
    path.write_text(FULL)
    space = load_space(path, [f"optim.optimizer={value}"])
    assert ("optim.momentum" in space.domains) == momentum_is_sampled
    assert all("optim.optimizer" not in domain.when for domain in space.domains.values())
    assert space.start_from == ({"optim.lr": 1e-3}, *([{"optim.momentum": 0.9}] if momentum_is_sampled else []))


def test_an_override_may_give_another_domain(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(FULL)
    space = load_space(path, ["optim.lr={low: 1e-3, high: 1e-1}"])
    assert space.domains["optim.lr"] == Range(low=1e-3, high=1e-1)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("trials", r"--set: must be KEY=VALUE, but got 'trials'"),
        ("trails=3", r"--set trails: must be a config field or a setting, .* Did you mean 'trials'\?"),
        ("asha.graec=3", r"--set asha.graec: .* Did you mean 'asha.grace'\?"),
        ("optim.momentun=3", r"--set optim.momentun: .* Did you mean 'optim.momentum'\?"),
        ("optim.lr=-1", r"a.yaml: optim.lr: must be greater than 0, but got -1"),
        ("optim.lr=[", r"--set optim.lr: must be a YAML value"),
        ("trials=0", r"a.yaml: trials: must be greater than or equal to 1, but got 0"),
    ],
)
def test_a_bad_override_is_refused(tmp_path, override, match):
    path = tmp_path / "a.yaml"
    path.write_text(FULL)
    with pytest.raises(UserError, match=match):
        load_space(path, [override])


ATTENTION = """
space:
  model.weights: {choices: [coco, imagenet]}
  model.backbone: {choices: [resnet18, resnet34], when: {model.weights: imagenet}}
  model.attention: {choices: [none, se], when: {model.backbone: [BACKBONE, resnet34]}}
  model.attention_reduction: {choices: [8, 16], when: {model.attention: se}}
"""


@pytest.mark.parametrize(
    ("backbone", "left"),
    [("resnet50", {"model.attention", "model.attention_reduction"}), ("resnet18", set())],
)
def test_a_key_that_an_override_excludes_counts_with_its_default(tmp_path, backbone, left):
    path = tmp_path / "a.yaml"
    path.write_text(HEAD + ATTENTION.replace("BACKBONE", backbone) + "  optim.lr: {low: 1e-4, high: 1e-3}\n")
    space = load_space(path, ["model.weights=coco"])
    assert set(space.domains) == left | {"optim.lr"}
    assert all("model.backbone" not in domain.when for domain in space.domains.values())


def test_an_override_may_change_metric_and_direction_together(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(FULL)
    space = load_space(path, ["metric=loss/validation", "direction=minimize"])
    assert (space.metric, space.direction) == ("loss/validation", "minimize")
    with pytest.raises(UserError, match="direction: must be 'minimize' for loss/validation"):
        load_space(path, ["metric=loss/validation"])
