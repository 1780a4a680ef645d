"""Search spaces: what is read, drawn and told."""

import json
import subprocess
import sys

import numpy as np
import pytest
from spacefiles import FULL, HEAD, LR, parse

from search.space import Choices, Range, Space, load_space, parse_space

MINIMIZING = HEAD.replace("segm/AP50", "loss/validation").replace("maximize", "minimize")


@pytest.fixture
def full() -> Space:
    return parse(FULL)


def test_a_full_space_is_read(full):
    assert (full.metric, full.direction, full.trials, full.epochs, full.seed, full.keep) == (
        "segm/AP50",
        "maximize",
        8,
        9,
        4,
        3,
    )
    assert full.asha is not None
    assert (full.asha.grace, full.asha.reduction) == (1, 3)
    assert full.resources is not None
    assert full.resources.gpu == 0.5
    assert full.data is not None
    assert full.data.generate is not None
    assert full.data.generate.size == 128
    assert full.fixed == {"model.weights": "none", "model.anchors": "8-128"}
    assert full.domains["optim.lr"] == Range(low=1e-4, high=1e-2, log=True)
    assert full.domains["train.batch_size"] == Range(low=1, high=7, step=2, integer=True)
    assert full.domains["optim.clip_norm"] == Choices(choices=(None, 1, 10.0))
    assert full.start_from == ({"optim.lr": 1e-3}, {"optim.optimizer": "sgd", "optim.momentum": 0.9})


def test_a_small_space_gets_the_defaults():
    space = parse(HEAD + "space:\n" + LR)
    assert (space.seed, space.keep, space.resources, space.data, space.start_from) == (0, 3, None, None, ())
    assert space.rungs == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [
        (1, ()),
        (3, (1, 2)),
        (12, (1, 2, 4, 8)),
        (27, (2, 4, 8, 16)),
        (52, (3, 6, 12, 24, 48)),
        (100, (6, 12, 24, 48, 96)),
    ],
)
@pytest.mark.parametrize("auto", ["", "asha: auto\n", "asha: on\n"])
def test_asha_auto_has_rungs_that_suit_the_full_length(auto, epochs, rungs):
    space = parse(HEAD.replace("epochs: 9", f"epochs: {epochs}") + auto + "space:\n" + LR)
    assert space.rungs == rungs
    assert parse_space(space.to_json(), "again").asha == space.asha


@pytest.mark.parametrize("off", ["off", "false", "'off'"])
def test_asha_off_means_no_rungs(off):
    space = parse(HEAD + f"asha: {off}\nspace:\n" + LR)
    assert space.asha is None
    assert space.rungs == ()


def test_random_params_lie_in_their_domains_and_make_configs(full):
    rng = np.random.default_rng(0)
    draws = [full.sample(rng) for _ in range(300)]
    for params in draws:
        assert all(full.domains[key].contains(value) for key, value in params.items())
        full.config(params, seed=1)
    assert {params["train.batch_size"] for params in draws} == {1, 3, 5, 7}
    assert {params["optim.clip_norm"] for params in draws} == {None, 1, 10.0}
    logs = np.log10([params["optim.lr"] for params in draws])
    assert np.mean(logs < -3) == pytest.approx(0.5, abs=0.1), "uniform in the logarithm"


def test_a_config_holds_fixed_sampled_and_study_values(full):
    config = full.config({"optim.lr": 0.005, "optim.optimizer": "sgd"}, seed=77)
    assert (config.model.anchors, config.optim.lr, config.optim.optimizer) == ("8-128", 0.005, "sgd")
    assert (config.train.epochs, config.train.metric, config.train.seed) == (9, "segm/AP50", 77)


def test_the_json_form_is_a_space_file_that_makes_the_same_space(full):
    content = json.loads(json.dumps(full.to_json()))
    again = parse_space(content, "study.json")
    assert again == full
    assert again.fingerprint == full.fingerprint
    for head in (HEAD + "asha: off\n", MINIMIZING):
        space = parse(head + "space:\n" + LR)
        assert parse_space(json.loads(json.dumps(space.to_json())), "x") == space


def test_a_minimised_metric_is_told_with_its_direction():
    space = parse(MINIMIZING + "space:\n" + LR)
    assert space.direction == "minimize"
    assert space.describe()[0].startswith("minimize loss/validation: 8 trials")
    assert space.fingerprint != parse(HEAD + "space:\n" + LR).fingerprint


@pytest.mark.parametrize(
    "override", ["trials=20", "keep=1", "resources.gpu=1", "data={root: a}", "start_from=[{optim.lr: 2e-3}]"]
)
def test_the_fingerprint_ignores_what_leaves_results_comparable(tmp_path, full, override):
    (tmp_path / "a.yaml").write_text(FULL)
    changed = load_space(tmp_path / "a.yaml", [override])
    assert changed != full
    assert changed.fingerprint == full.fingerprint


@pytest.mark.parametrize(
    "override",
    ["metric=segm/AP", "epochs=8", "seed=5", "asha.grace=2", "asha=off", "model.anchors=16-256", "optim.lr=1e-3"],
)
def test_the_fingerprint_changes_with_what_results_depend_on(tmp_path, full, override):
    (tmp_path / "a.yaml").write_text(FULL)
    assert load_space(tmp_path / "a.yaml", [override]).fingerprint != full.fingerprint


def test_the_description_names_rungs_domains_conditions_and_fixed_values(full):
    text = "\n".join(full.describe())
    for part in (
        "8 trials of 9 epochs",
        "epochs 1, 3",
        "sgd | adamw",
        "when optim.optimizer is sgd",
        "8-128",
        "first: ",
    ):
        assert part in text


def test_a_space_made_directly_may_search_over_anything():
    space = Space(metric="accuracy", trials=1, epochs=50, domains={"units": Range(low=1, high=9, integer=True)})
    assert space.direction == "maximize"
    assert 1 <= space.sample(np.random.default_rng(0))["units"] <= 9
    assert len(space.fingerprint) == 16


def test_importing_spaces_loads_neither_torch_nor_ray_nor_optuna():
    heavy = "('torch', 'ray', 'optuna')"
    code = f"import sys, search.space, search.study.asha; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
