"""Search spaces: what is read, what is refused, what is drawn."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from cellseg.errors import UserError
from cellseg.files import parse_yaml
from search.space import Choices, Range, Space, load_space, parse_space

HEAD = "metric: segm/AP50\ndirection: maximize\ntrials: 8\nepochs: 9\n"
LR = "  optim.lr: {low: 1e-4, high: 1e-2, log: true}\n"
FULL = (
    HEAD
    + """
seed: 4
asha: {grace: 1, reduction: 3}
resources: {cpu: 1, gpu: 0.5}
data: {generate: {train: 48, test: 8, seed: 1, size: 128}}
space:
  optim.momentum: {low: 0.8, high: 0.99, when: {optim.optimizer: sgd}}
  optim.optimizer: {choices: [sgd, adamw]}
  optim.lr: {low: 1e-4, high: 1e-2, log: true}
  optim.clip_norm: {choices: [null, 1, 10.0]}
  train.batch_size: {low: 1, high: 7, step: 2, type: int}
  augment.preset: {choices: [none, flips, full]}
  augment.strength: {low: 0, high: 1, when: {augment.preset: [full]}}
  model.backbone: {choices: [resnet18, resnet34]}
  model.weights: none
  model.norm: {choices: [group, batch]}
  model.anchors: 8-128
start_from:
  - {optim.lr: 1e-3}
  - {optim: {optimizer: sgd, momentum: 0.9}}
"""
)


def parse(text: str) -> Space:
    return parse_space(parse_yaml(text), "s.yaml")


def problems_of(text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(text)
    return list(caught.value.problems)


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
    assert space.make_asha().rungs == (1, 3)


@pytest.mark.parametrize("off", ["off", "false", "'off'"])
def test_asha_off_means_no_rungs(off):
    space = parse(HEAD + f"asha: {off}\nspace:\n" + LR)
    assert space.asha is None
    assert space.make_asha().rungs == ()


def test_numbers_follow_the_type_of_the_field():
    space = parse(
        HEAD
        + "space:\n  optim.clip_norm: {low: 1, high: 10}\n  data.crop: {low: 64, high: 256}\n"
        + "  optim.weight_decay: {low: 0, high: 1, type: int}\n"
    )
    assert [(domain.integer, type(domain.low)) for domain in space.domains.values()] == [
        (False, float),
        (True, int),
        (True, int),
    ]


SPACE_PROBLEMS = [
    ("optim.lr: {low: 0.1, high: 0.01}", r"optim.lr: low < high must hold, but got low=0.1, high=0.01. Swap them\?"),
    ("optim.lr: {low: 0.1, high: 0.1}", r"optim.lr: low < high must hold, .* Write the value alone"),
    ("optim.weight_decay: {low: 0, high: 0.1, log: true}", r"optim.weight_decay: log needs low > 0, but got low=0"),
    ("optim.lr: {low: 0, high: 0.1}", r"optim.lr: must be greater than 0, but got 0"),
    ("optim.lr: {low: 0.1, high: .inf}", r"optim.lr: high must be a finite number, but got inf"),
    ("optim.lr: {low: a, high: 1}", r"optim.lr: low must be a finite number, but got 'a'"),
    ("optim.lr: {low: true, high: 2}", r"optim.lr: low must be a finite number, but got True"),
    ("optim.lr: {low: 0.1}", r"optim.lr: a domain must have high"),
    ("optim.lr: {low: 0.1, hihg: 1}", r"optim.lr: a domain must hold .* but got 'hihg'"),
    ("optim.lr: {choices: [0.1], low: 0.1}", r"optim.lr: .* but got 'low' beside choices"),
    ("optim.lr: {low: 0.1, high: 1, log: 1}", r"optim.lr: log must be true or false, but got 1"),
    ("optim.lr: {low: 0.1, high: 1, type: number}", r"optim.lr: type must be int or float, but got 'number'"),
    ("optim.lr: {low: 0.1, high: 1, step: 0.2}", r"optim.lr: step must divide high - low, .* Make high 0.9\?"),
    ("optim.lr: {low: 0.1, high: 1, step: 0}", r"optim.lr: step > 0 must hold, but got step=0"),
    ("optim.lr: {low: 0.1, high: 1, step: 0.1, log: true}", r"optim.lr: log excludes step, but got step=0.1"),
    ("optim.lr: {low: 0.1, high: 1, step: 5}", r"optim.lr: step must divide .* Make it smaller"),
    ("train.batch_size: {low: 1, high: 8.0}", r"train.batch_size: high must be an integer, but got 8.0"),
    ("train.batch_size: {low: 1, high: 8, type: float}", r"train.batch_size: the field takes integers, .* type=float"),
    ("train.batch_size: {low: 0, high: 8}", r"train.batch_size: must be greater than or equal to 1, but got 0"),
    ("model.backbone: {low: 0, high: 8}", r"model.backbone: the field takes no numbers, but got a range. Use choices"),
    ("model.detector: {choices: []}", r"model.detector: choices must be a list of at least one value, but got \[\]"),
    ("model.detector: {choices: v1}", r"model.detector: choices must be a list"),
    ("model.detector: {choices: [v1, v1]}", r"model.detector: choices must differ, but got 'v1' twice"),
    ("model.detector: {choices: [v1, v3]}", r"model.detector: must be 'v1' or 'v2', but got 'v3'"),
    ("model.detector: {choices: [[v1]]}", r"model.detector: a choice must be .* but got \['v1'\]"),
    ("optim.lr: {choices: [.nan]}", r"optim.lr: must be .* but got nan"),
    ("model.detector: v3", r"model.detector: must be 'v1' or 'v2', but got 'v3'"),
    ("model.bakbone: resnet18", r"model.bakbone: must be a config field, .* Did you mean 'model.backbone'\?"),
    ("train.epochs: 3", r"train.epochs: is set by the study, .* Set epochs at the top"),
    ("train.metric: {choices: [segm/AP]}", r"train.metric: is set by the study"),
    ("train.seed: {low: 0, high: 9}", r"train.seed: is set by the study"),
    ("data.root: {choices: [a, b]}", r"data.root: is set by the study"),
    ("data.split_seed: {low: 0, high: 9}", r"data.split_seed: must be the same in all trials"),
    ("data.fold: {choices: [0, 1]}", r"data.fold: must be the same in all trials"),
    (
        "optim.gamma: {low: 0.1, high: 0.5}",
        r"optim.gamma: only matters for optim.schedule step, but got .*warmup-cosine",
    ),
    (
        "{optim.schedule: step, optim.gamma: {low: 0.1, high: 0.5, when: {optim.schedule: step}}}",
        r"optim.gamma: when must name a sampled key, but got 'optim.schedule'",
    ),
    (
        "{optim.schedule: {choices: [step, constant]}, optim.gamma: {low: 0.1, high: 0.5}}",
        r"optim.gamma: only matters .* too. Add when: \{optim.schedule: step\}",
    ),
    (
        "{optim.schedule: {choices: [warmup-cosine, constant]}, optim.gamma: {low: 0.1, high: 0.5}}",
        r"optim.gamma: only matters .* Leave optim.gamma out",
    ),
    (
        "{optim.optimizer: {choices: [sgd, adamw]}, optim.lr: {low: 0.1, high: 1, when: {optim.optimizer: rms}}}",
        r"optim.lr: when must name a value that optim.optimizer can take, but got 'rms'. It takes sgd \| adamw",
    ),
    ("optim.weight_decay: {low: 0, high: 1, when: sgd}", r"optim.weight_decay: when must map keys"),
    ("optim.weight_decay: {low: 0, high: 1, when: {optim.optimizer: []}}", r"optim.weight_decay: when must name"),
    (
        "{optim.lr: {low: 1, high: 2, when: {train.batch_size: 1}}, train.batch_size: "
        "{low: 1, high: 2, when: {optim.lr: 1.5}}}",
        r"conditions must not run in a circle, but got .*optim.lr -> ",
    ),
    ("{optim: {lr: 1}, optim.lr: 1}", r"optim.lr: must be set once, but got it nested and dotted"),
    ("[1]", r"space: must be a mapping of settings, but got list"),
    ("{optim.lr: 0.1}", r"space: at least one key must be sampled"),
    (
        "{data.shorter_side: {low: 64, high: 512}, data.longer_side: 256}",
        r"data.shorter_side: shorter_side <= longer_side.* Sampled: data.shorter_side=\d+\. \d+ % of the space",
    ),
    (
        "{model.norm: {choices: [auto, group]}, model.weights: imagenet}",
        r"model.norm: imagenet weights need batch statistics.* Sampled: model.norm=group",
    ),
    (
        "{data.fold: 7, optim.lr: {low: 0.1, high: 1}}",
        r"data.fold: fold < num_folds must hold, but got fold=7, num_folds=5. Folds count from 0.$",
    ),
]


@pytest.mark.parametrize(("space", "match"), SPACE_PROBLEMS, ids=[space for space, _ in SPACE_PROBLEMS])
def test_a_bad_space_is_refused_with_one_clear_line(space, match):
    if space[0] not in "{[":
        space = f"{{{space}}}" if ": {" in space else f"{{{space}, optim.weight_decay: {{low: 0, high: 1}}}}"
    with pytest.raises(UserError, match=match) as caught:
        parse(HEAD + f"space: {space}")
    assert all(problem.startswith("s.yaml: ") for problem in caught.value.problems)
    assert len(caught.value.problems) <= 2


SETTING_PROBLEMS = [
    (HEAD.replace("metric: segm/AP50\n", ""), r"metric: must be given, but got nothing. Write for example"),
    (HEAD.replace("trials: 8\n", ""), r"trials: must be given"),
    (HEAD.replace("segm/AP50", "segm/AP51"), r"metric: must be 'segm/AP', .* but got 'segm/AP51'"),
    (
        HEAD.replace("maximize", "minimize"),
        r"direction: must be 'maximize', as every metric here is better when larger",
    ),
    (HEAD.replace("trials: 8", "trials: 0"), r"trials: must be greater than or equal to 1, but got 0"),
    (HEAD.replace("epochs: 9", "epochs: nine"), r"epochs: must be a valid integer, but got 'nine'"),
    (HEAD + "epoch: 3\n", r"epoch: must be a setting, .* Did you mean 'epochs'\?"),
    (HEAD + "optim.momentum: 3\n", r"optim.momentum: a config field must stand under space"),
    (HEAD + "asha: {grace: 10}\n", r"asha.grace: grace <= epochs must hold, but got grace=10, epochs=9"),
    (HEAD + "asha: {reduction: 1}\n", r"asha.reduction: must be greater than or equal to 2, but got 1"),
    (HEAD + "asha: {graec: 1}\n", r"asha.graec: must be a setting, .* Did you mean 'asha.grace'\?"),
    (HEAD + "asha:\n", r"asha: must be \{grace, reduction\} or off, but got None"),
    (HEAD + "data:\n", r"data: must be a mapping, but got nothing"),
    (HEAD + "data: {root: a, generate: {train: 3}}\n", r"data: must be either .* but got both or none"),
    (HEAD + "data: {generate: {trian: 3}}\n", r"data.generate.trian: .* Did you mean 'data.generate.train'\?"),
    (HEAD + "resources: {cpu: 0}\n", r"resources.cpu: must be greater than 0, but got 0"),
    (HEAD + "start_from: {optim.lr: 1}\n", r"start_from: must be a list of configs, but got dict"),
    (HEAD + "start_from: [3]\n", r"start_from\[0\]: must be a mapping of settings, but got int"),
    (HEAD + "start_from: [{}]\n", r"start_from\[0\]: must name at least one sampled key"),
    (HEAD + "start_from: [{optim.lr: 1}]\n", r"start_from\[0\]: optim.lr: must be inside its domain, .* but got 1"),
    (HEAD + "start_from: [{optim.gamma: 1}]\n", r"start_from\[0\]: optim.gamma: must be a sampled key"),
    (HEAD + "start_from: [{optim.lr: 1e-3}, {optim: {lr: 1e-3}}]\n", r"start_from\[1\]: start configs must differ"),
]


@pytest.mark.parametrize(("head", "match"), SETTING_PROBLEMS)
def test_a_bad_setting_is_refused_with_one_clear_line(head, match):
    with pytest.raises(UserError, match=match) as caught:
        parse(head + "space:\n" + LR)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("start", "match"),
    [
        ("{optim.momentum: 0.9}", r"optim.momentum: needs optim.optimizer: sgd beside it, but got no optim.optimizer"),
        ("{optim.momentum: 0.9, optim.optimizer: adamw}", r"needs optim.optimizer: sgd .* got optim.optimizer=adamw"),
        ("{train.batch_size: 2}", r"train.batch_size: must be inside its domain, 1 .. 7, step 2, but got 2"),
        ("{optim.clip_norm: 3}", r"optim.clip_norm: must be inside its domain, None \| 1 \| 10.0, but got 3"),
    ],
)
def test_a_start_config_that_the_space_cannot_draw_is_refused(start, match):
    (problem,) = problems_of(FULL + f"  - {start}\n")
    assert re.search(match, problem)


def test_every_problem_is_reported_at_once():
    found = problems_of(
        "direction: minimize\ntrials: 0\nepochs: 9\nsed: 3\nasha: {graec: 3}\nspace:\n  optim.lr: {low: 2, high: 1}\n"
        "  model.bakbone: x\n  optim.momentum: {low: 0.1, high: 0.9}\n  data.fold: {choices: [0, 1]}\n"
        "start_from: [{optim.lr: 3, optim.gamma: 1}]\n"
    )
    keys = [problem.removeprefix("s.yaml: ").split(":")[0] for problem in found]
    top = {"metric", "sed", "direction", "trials", "asha.graec", "start_from[0]"}
    assert set(keys) == top | {"optim.lr", "model.bakbone", "optim.momentum", "data.fold"}
    assert len(keys) == len(set(keys))


def test_a_condition_that_follows_from_another_is_enough():
    space = parse(
        HEAD
        + "space:\n  optim.optimizer: {choices: [sgd, adamw]}\n"
        + "  train.batch_size: {choices: [1, 2], when: {optim.optimizer: sgd}}\n"
        + "  optim.momentum: {low: 0.1, high: 0.9, when: {train.batch_size: 2}}\n"
    )
    params = [space.sample(np.random.default_rng(seed)) for seed in range(50)]
    assert {param["optim.optimizer"] for param in params if "optim.momentum" in param} == {"sgd"}


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

    full.suggest(ask)
    assert "optim.momentum" not in asked
    assert asked.index("augment.preset") < asked.index("augment.strength")


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


@pytest.mark.parametrize(
    "domain",
    [
        Range(low=1, high=100, log=True, integer=True),
        Range(low=0.1, high=0.7, step=0.1),
        Range(low=2, high=5, integer=True),
        Range(low=0.5, high=2.0),
        Choices(choices=(True, 1.5, "a", None)),
    ],
    ids=str,
)
def test_a_domain_draws_what_it_and_optuna_contain_and_survives_its_file_form(domain):
    rng = np.random.default_rng(0)
    distribution = domain.distribution()
    drawn = [domain.sample(rng) for _ in range(200)]
    assert all(domain.contains(value) for value in drawn)
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in drawn)
    assert json.loads(json.dumps(domain.to_json())) == domain.to_json()


@pytest.mark.parametrize(
    ("domain", "value"),
    [
        (Range(low=0, high=3, integer=True), True),
        (Range(low=0, high=3, integer=True), 1.5),
        (Range(low=0.0, high=3.0), 3.1),
        (Range(low=0.0, high=3.0), "1"),
        (Range(low=0.0, high=3.0), None),
        (Range(low=0.0, high=3.0), float("nan")),
        (Range(low=0.0, high=3.0, step=0.5), 0.7),
        (Choices(choices=(1, 2)), True),
    ],
)
def test_a_domain_contains_no_strangers(domain, value):
    assert not domain.contains(value)


def test_a_config_holds_fixed_sampled_and_study_values(full):
    config = full.config({"optim.lr": 0.005, "optim.optimizer": "sgd"}, seed=77)
    assert (config.model.anchors, config.optim.lr, config.optim.optimizer) == ("8-128", 0.005, "sgd")
    assert (config.train.epochs, config.train.metric, config.train.seed) == (9, "segm/AP50", 77)


def test_the_json_form_is_a_space_file_that_makes_the_same_space(full):
    content = json.loads(json.dumps(full.to_json()))
    again = parse_space(content, "study.json")
    assert again == full
    assert again.fingerprint == full.fingerprint
    off = parse(HEAD + "asha: off\nspace:\n" + LR)
    assert parse_space(json.loads(json.dumps(off.to_json())), "x") == off


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


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"a.yaml: the file must exist"),
        ("", r"a.yaml: must be a mapping of settings, but got NoneType"),
        ("- 1", r"a.yaml: must be a mapping of settings, but got list"),
        ("metric: [", r"a.yaml: must be valid YAML"),
        (HEAD + HEAD, r"a.yaml: must be valid YAML, .* 'metric' stands twice"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, text, match):
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=match):
        load_space(tmp_path / "a.yaml")


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
    assert 1 <= space.sample(np.random.default_rng(0))["units"] <= 9
    assert len(space.fingerprint) == 16


def test_importing_spaces_loads_neither_torch_nor_ray_nor_optuna():
    code = "import sys, search.space, search.asha; print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
