"""When a sampled key has a value, and which conditions it must have."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from spacefiles import FULL, HEAD, parse, problems_of

from search.space import Params, Range, Space, load_space
from search.space.space import fill

ATTENTION = """
space:
  model.weights: {choices: [coco, imagenet]}
  model.backbone: {choices: [resnet18, convnext_tiny], when: {model.weights: imagenet}}
  model.attention: {choices: [none, se], when: {model.backbone: [resnet18, resnet50]}}
"""
"""Where the weights are COCO's the backbone is not sampled: it is resnet50, the default."""


def draws(space: Space, count: int = 100) -> list[Params]:
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(count)]


@pytest.fixture
def full() -> Space:
    return parse(FULL)


@pytest.mark.parametrize(
    ("start", "match"),
    [
        (
            "{optim.momentum: 0.9}",
            r"optim.momentum: needs optim.optimizer: sgd in the same start config, but got no optim.optimizer",
        ),
        ("{optim.momentum: 0.9, optim.optimizer: adamw}", r"needs optim.optimizer: sgd .* got optim.optimizer=adamw"),
        ("{train.batch_size: 2}", r"train.batch_size: must be inside its domain, 1 .. 7, step 2, but got 2"),
        ("{optim.clip_norm: 3}", r"optim.clip_norm: must be inside its domain, None \| 1 \| 10.0, but got 3"),
    ],
)
def test_a_start_config_that_the_space_cannot_draw_is_refused(start, match):
    (problem,) = problems_of(FULL + f"  - {start}\n")
    assert re.search(match, problem)


def test_a_condition_that_follows_from_another_is_enough():
    space = parse(
        HEAD
        + "space:\n  optim.optimizer: {choices: [sgd, adamw]}\n"
        + "  train.batch_size: {choices: [1, 4], when: {optim.optimizer: sgd}}\n"
        + "  optim.momentum: {low: 0.1, high: 0.9, when: {train.batch_size: 4}}\n"
    )
    assert {params["optim.optimizer"] for params in draws(space) if "optim.momentum" in params} == {"sgd"}


def test_a_key_that_is_not_sampled_counts_with_its_default():
    space = parse(HEAD + ATTENTION)
    for params in draws(space):
        assert ("model.backbone" in params) == (params["model.weights"] == "imagenet")
        backbone = params.get("model.backbone", "resnet50")
        assert ("model.attention" in params) == (backbone != "convnext_tiny"), params


def test_a_default_that_does_not_fit_leaves_the_key_out():
    space = parse(HEAD + ATTENTION.replace("[resnet18, resnet50]", "resnet18"))
    assert all("model.attention" not in params for params in draws(space) if params["model.weights"] == "coco")


def test_a_condition_on_a_key_that_is_neither_sampled_nor_a_field_does_not_hold():
    x = Range(low=0.0, high=1.0)
    domains = {"x": x, "y": Range(low=0.0, high=1.0, when={"z": (1,)}), "u": Range(low=0, high=1, when={"y": (1,)})}
    space = Space(metric="m", trials=1, epochs=1, domains=domains)
    assert [space.is_active(key, {"x": 0.5}) for key in domains] == [True, False, False]


def test_a_fixed_value_counts_in_a_space_made_directly():
    domains = {"optim.momentum": Range(low=0.0, high=0.9, when={"optim.optimizer": ("sgd",)})}
    space = Space(metric="m", trials=1, epochs=1, domains=domains, fixed={"optim.optimizer": "sgd"})
    assert space.is_active("optim.momentum", {})


def test_a_condition_may_name_values_of_an_integer_range():
    space = parse(
        HEAD
        + "space:\n  model.frozen_stages: {low: 0, high: 5}\n"
        + "  optim.backbone_lr_factor: {low: 0.1, high: 1, when: {model.frozen_stages: [0, 1, 2, 3, 4]}}\n"
    )
    drawn = draws(space)
    assert {params["model.frozen_stages"] for params in drawn} == set(range(6))
    assert all(("optim.backbone_lr_factor" in params) == (params["model.frozen_stages"] < 5) for params in drawn)


def test_several_conditions_must_all_hold():
    space = parse(
        HEAD
        + "space:\n  optim.optimizer: {choices: [sgd, adamw]}\n  train.batch_size: {low: 1, high: 3}\n"
        + "  optim.momentum: {low: 0.1, high: 0.9, when: {optim.optimizer: [sgd], train.batch_size: [1, 3]}}\n"
    )
    for seed in range(50):
        params = space.sample(np.random.default_rng(seed))
        expected = params["optim.optimizer"] == "sgd" and params["train.batch_size"] != 2
        assert ("optim.momentum" in params) == expected


def test_conditions_are_asked_first_and_inactive_keys_not_at_all(full):
    asked = []

    def ask(key):
        asked.append(key)
        return {"optim.optimizer": "adamw", "augment.preset": "full"}.get(key, 0.5)

    fill(full.domains, full.values({}), ask)
    assert "optim.momentum" not in asked
    assert asked.index("augment.preset") < asked.index("augment.strength")


@pytest.mark.parametrize(
    ("when", "match"),
    [
        ("resnet34", r"takes resnet18 \| convnext_tiny, and resnet50 where its own when does not hold"),
        ("[]", r"model.attention: when needs at least one value of model.backbone, but got none"),
    ],
)
def test_a_condition_names_values_of_the_domain_or_the_default(when, match):
    found = problems_of(HEAD + ATTENTION.replace("[resnet18, resnet50]", when))
    assert any(re.search(match, problem) for problem in found)


def test_a_default_is_no_value_of_a_key_that_is_always_sampled():
    (problem,) = problems_of(
        HEAD
        + "space:\n  data.shorter_side: {choices: [256, 512]}\n"
        + "  optim.lr: {low: 0.1, high: 1, when: {data.shorter_side: null}}\n"
    )
    assert "when must name a value that data.shorter_side can take, but got None. It takes 256 | 512." in problem


IRRELEVANT = [
    pytest.param(
        "model.frozen_stages: {low: 0, high: 5}, optim.backbone_lr_factor: {low: 0.1, high: 1}",
        "optim.backbone_lr_factor: only matters for model.frozen_stages anything but 5, but got it sampled for 5 too. "
        "Add when: {model.frozen_stages: [0, 1, 2, 3, 4]}.",
        id="range",
    ),
    pytest.param(
        "model.frozen_stages: 5, optim.backbone_lr_factor: {low: 0.1, high: 1}",
        "optim.backbone_lr_factor: only matters for model.frozen_stages anything but 5, but got model.frozen_stages=5. "
        "Leave optim.backbone_lr_factor out, or sample model.frozen_stages too.",
        id="fixed",
    ),
    pytest.param(
        "model.attention: {choices: [se, cbam]}, model.deformable_stages: {choices: [0, 1]}, "
        "model.backbone: {choices: [resnet18, efficientnet_b0]}",
        [
            "model.attention: only matters for model.backbone resnet101 or resnet10t or .*too. "
            "Add when: {model.backbone: resnet18}.",
            "model.deformable_stages: only matters for .*Add when: {model.backbone: resnet18}.",
        ],
        id="two keys",
    ),
    pytest.param(
        "optim.schedule: {choices: [plateau, cosine]}, optim.warmup_epochs: {choices: [0, 3]}, "
        "optim.warmup_factor: {choices: [0.1, 0.2]}",
        [
            "optim.warmup_epochs: only matters for optim.schedule plateau, but got it sampled for cosine too. "
            "Add when: {optim.schedule: plateau}.",
            "optim.warmup_factor: only matters for optim.schedule plateau, but got it sampled for cosine too.*",
            "optim.warmup_factor: only matters for optim.warmup_epochs anything but 0, but got it sampled for 0 too. "
            "Add when: {optim.warmup_epochs: 3}.",
        ],
        id="several conditions",
    ),
    pytest.param(
        "optim.schedule: {choices: [plateau, cosine]}, "
        "optim.warmup_epochs: {choices: [1, 3], when: {optim.schedule: plateau}}, "
        "optim.warmup_factor: {choices: [0.1, 0.2], when: {optim.schedule: plateau}}",
        None,
        id="all fulfilled",
    ),
    pytest.param(
        "optim.schedule: {choices: [step, cosine]}, "
        "optim.warmup_epochs: {choices: [1, 3], when: {optim.schedule: step}}",
        "optim.warmup_epochs: only matters for optim.schedule plateau, but got optim.schedule sampled from step. "
        "Leave optim.warmup_epochs out.",
        id="never",
    ),
    pytest.param(
        "model.weights: {choices: [coco, imagenet]}, "
        "model.backbone: {choices: [convnext_tiny], when: {model.weights: imagenet}}, "
        "model.norm: {choices: [frozen, batch]}",
        "model.norm: only matters for model.backbone anything but convnext_.*it sampled for convnext_tiny too. "
        "Add when: {model.backbone: resnet50}.",
        id="only the default fits",
    ),
]


@pytest.mark.parametrize(("space", "expected"), IRRELEVANT)
def test_a_key_is_sampled_only_where_it_has_an_effect(space, expected):
    text = HEAD + f"space: {{{space}}}"
    if expected is None:
        parse(text)
        return
    expected = [expected] if isinstance(expected, str) else expected
    found = problems_of(text)
    assert len(found) == len(expected), found
    for problem, pattern in zip(found, expected, strict=True):
        literal = re.escape(pattern).replace(re.escape(".*"), ".*")
        assert re.fullmatch("s.yaml: " + literal, problem), problem


@pytest.mark.parametrize(
    ("start", "missing"),
    [
        ("{model.weights: coco, model.attention: se}", None),
        ("{model.weights: imagenet, model.backbone: resnet18, model.attention: se}", None),
        ("{model.weights: imagenet, model.attention: se}", "model.attention: needs .* but got no model.backbone"),
        ("{model.attention: se}", "model.attention: needs .* but got no model.backbone"),
        (
            "{model.weights: coco, model.backbone: resnet18}",
            "model.backbone: needs model.weights: imagenet in the same start config, but got model.weights=coco",
        ),
    ],
)
def test_a_start_config_counts_with_the_defaults_of_keys_that_it_excludes(start, missing):
    text = HEAD + ATTENTION + f"start_from: [{start}]"
    if missing is None:
        parse(text)
        return
    (problem,) = problems_of(text)
    assert re.search(missing, problem)


def test_a_start_config_is_told_that_a_default_does_not_fit():
    text = HEAD + ATTENTION.replace("[resnet18, resnet50]", "resnet18")
    (problem,) = problems_of(text + "start_from: [{model.weights: coco, model.attention: se}]")
    assert "needs model.backbone: resnet18 in the same start config, but got model.backbone=resnet50" in problem


def test_a_space_of_sixty_keys_is_read_in_no_time():
    begin = time.process_time()
    space = load_space(Path(__file__).parents[3] / "spaces" / "full.yaml")
    assert time.process_time() - begin < 1.5
    assert len(space.domains) >= 60
