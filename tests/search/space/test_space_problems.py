"""What is refused of a space file, and in which words."""

import pytest
from spacefiles import HEAD, LR, parse, problems_of

from cellseg.errors import UserError
from search.space import load_space

SPACE_PROBLEMS = [
    ("optim.lr: {low: 0.1, high: 0.01}", r"optim.lr: low < high must hold, but got low=0.1, high=0.01. Swap them\?"),
    ("optim.lr: {low: 0.1, high: 0.1}", r"optim.lr: low < high must hold, .* Write the value alone"),
    ("optim.weight_decay: {low: 0, high: 0.1, log: true}", r"optim.weight_decay: log needs low > 0, but got low=0"),
    ("optim.lr: {low: 0, high: 0.1}", r"optim.lr: must be greater than 0, but got 0"),
    ("optim.lr: {low: 0.1, high: .inf}", r"optim.lr: high must be a finite number, but got inf"),
    ("optim.lr: {low: 0.1, high: 1" + 400 * "0" + "}", r"optim.lr: high must be a finite number, but got 1000"),
    ("optim.lr: {low: 1e-3, high: 1e-1, step: 1e-300}", r"optim.lr: a range must have at most .* steps, .* 9.9e\+298"),
    ("optim.lr: {low: 1e-3, high: 1, step: 7e-200}", r"optim.lr: step must divide high - low"),
    ("train.batch_size: {low: 1, high: 1" + 30 * "0" + "}", r"train.batch_size: a range must have at most .* 1.0e\+30"),
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
    ("data.train_on: unvalidated", r"data.train_on: must leave images to validate with"),
    ("data.train_on: {choices: [folds, all]}", r"data.train_on: must be the same in all trials"),
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
        r"conditions must not be circular, but got .*optim.lr -> ",
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
        r"data.fold: fold < num_folds must hold, but got fold=7, num_folds=5. Folds are numbered from 0.$",
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
        r"direction: must be 'maximize' for segm/AP50 \(larger is better\), but got 'minimize'",
    ),
    (
        HEAD.replace("segm/AP50", "loss/validation"),
        r"direction: must be 'minimize' for loss/validation \(smaller is better\), but got 'maximize'",
    ),
    (
        HEAD.replace("maximize", "upwards"),
        r"direction: must be 'maximize' for segm/AP50 \(larger is better\), but got 'upwards'",
    ),
    (
        HEAD.replace("direction: maximize\n", "").replace("segm/AP50", "loss/validation"),
        r"direction: must be given, but got nothing. Write for example direction: minimize",
    ),
    (
        HEAD.replace("metric: segm/AP50\n", "").replace("maximize", "minimize"),
        r"metric: must be given, but got nothing. Write for example metric: loss/validation",
    ),
    (HEAD.replace("trials: 8", "trials: 0"), r"trials: must be greater than or equal to 1, but got 0"),
    (HEAD.replace("epochs: 9", "epochs: nine"), r"epochs: must be a valid integer, but got 'nine'"),
    (HEAD + "epoch: 3\n", r"epoch: must be a setting, .* Did you mean 'epochs'\?"),
    (HEAD + "optim.momentum: 3\n", r"optim.momentum: a config field must stand under space"),
    (HEAD + "asha: {grace: 10}\n", r"asha.grace: grace <= epochs must hold, but got grace=10, epochs=9"),
    (HEAD + "asha: {reduction: 1}\n", r"asha.reduction: must be greater than or equal to 2, but got 1"),
    (HEAD + "asha: {graec: 1}\n", r"asha.graec: must be a setting, .* Did you mean 'asha.grace'\?"),
    (HEAD + "asha:\n", r"asha: must be auto, \{grace, reduction\} or off, but got None"),
    (HEAD + "asha: early\n", r"asha: must be auto, \{grace, reduction\} or off, but got 'early'"),
    (HEAD + "data:\n", r"data: must be a mapping, but got nothing"),
    (HEAD + "data: {root: a, generate: {train: 3}}\n", r"data: must be either .* but got both or none"),
    (HEAD + "data: {generate: {trian: 3}}\n", r"data.generate.trian: .* Did you mean 'data.generate.train'\?"),
    (HEAD + "resources: {cpu: 0}\n", r"resources.cpu: must be greater than 0, but got 0"),
    (HEAD + "resources: {memory: 0}\n", r"resources.memory: must be greater than 0, but got 0"),
    (
        HEAD + "resources: {custom: {disk: 0}}\n",
        r"resources.custom: the amount of disk must be greater than 0, but got 0",
    ),
    (
        HEAD + "resources: {custom: {GPU: 2}}\n",
        r"resources.custom: must name resources that have no setting of their own, but got GPU. Write resources.gpu",
    ),
    (HEAD + "resources: {custom: {' ': 2}}\n", r"resources.custom: must name each resource, but got ' '"),
    (HEAD + "resources: {labels: {zone: 'in(a'}}\n", r"resources.labels: label zone must be VALUE, .*'in\(a'"),
    (HEAD + "resources: {labels: {'my zone': a}}\n", r"resources.labels: a label's name must be .* but got 'my zone'"),
    (HEAD + "resources: {label: {zone: a}}\n", r"resources.label: .* Did you mean 'resources.labels'\?"),
    (HEAD + "priority: 0\n", r"priority: must be greater than 0, but got 0"),
    (HEAD + "max_slots: 0\n", r"max_slots: must be greater than or equal to 1, but got 0"),
    (HEAD + "stall: {epochs: 1}\n", r"stall.epochs: must be greater than or equal to 2, but got 1"),
    (HEAD + "stall:\n", r"stall: must be a mapping, but got None"),
    (HEAD + "resources: {gpu: 2}\n", r"resources.gpu: .*0 <= gpu <= 1 must hold, but got 2. Write gpu: 1"),
    (HEAD + "resources: {gpu: 0.001}\n", r"resources.gpu: a share of a GPU must be at least 0.01, but got 0.001"),
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


def test_every_problem_is_reported_at_once():
    found = problems_of(
        "direction: upwards\ntrials: 0\nepochs: 9\nsed: 3\nasha: {graec: 3}\nspace:\n  optim.lr: {low: 2, high: 1}\n"
        "  model.bakbone: x\n  optim.momentum: {low: 0.1, high: 0.9}\n  data.fold: {choices: [0, 1]}\n"
        "start_from: [{optim.lr: 3, optim.gamma: 1}]\n"
    )
    keys = [problem.removeprefix("s.yaml: ").split(":")[0] for problem in found]
    top = {"metric", "sed", "direction", "trials", "asha.graec", "start_from[0]"}
    assert set(keys) == top | {"optim.lr", "model.bakbone", "optim.momentum", "data.fold"}
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"a.yaml: the file must exist"),
        ("", r"a.yaml: must be a mapping of settings, but got NoneType"),
        ("- 1", r"a.yaml: must be a mapping of settings, but got list"),
        ("metric: [", r"a.yaml: must be valid YAML"),
        (HEAD + HEAD, r"a.yaml: must be valid YAML, .* 'metric' appears twice"),
    ],
)
def test_a_file_that_is_no_space_is_refused(tmp_path, text, match):
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=match):
        load_space(tmp_path / "a.yaml")
