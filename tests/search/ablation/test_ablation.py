"""Tables of given configs: their files, the runs they stand for, and how a study carries them out."""

import json
from pathlib import Path

import pytest
from fakes import make_report, study_of

from cellseg.config import TrialConfig
from cellseg.errors import UserError
from cellseg.files import parse_yaml
from search.ablation import Ablation, load_ablation, parse_ablation
from search.run import main
from search.space import Space
from search.storage.store import StudyStore
from search.study.load import experiment_from_json, load_experiment
from search.study.study import Study, trial_seed

CONTENT = {
    "title": "learning rates",
    "source": "Made up.",
    "metric": "segm/AP50",
    "direction": "maximize",
    "repeats": 2,
    "measured": ["segm/AP50", "count/detections"],
    "common": {"model.weights": "none", "train": {"epochs": 3}},
    "rows": {
        "base": {"reported": {"val AP50": 0.31, "public AP50": 0.3}},
        "slow": {"config": {"optim.lr": 1e-5}, "reported": {"val AP50": 0.1}, "without_effect": "It was ignored."},
        "again": {"same_as": "base", "reported": {"val AP50": 0.31}},
    },
}
YAML = """
title: learning rates
source: Made up.
metric: segm/AP50
direction: maximize
repeats: 2
measured: [segm/AP50]
common:
  model.weights: none
  train.epochs: 3
rows:
  base:
  slow: {config: {optim.lr: 1e-5}}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "table.yaml").write_text(YAML)
    return tmp_path / "table.yaml"


def make_table(**settings) -> Ablation:
    return parse_ablation(CONTENT | settings, "table.yaml")


def make_study(folder, table: Ablation | None = None) -> Study:
    store = StudyStore.open(folder) if StudyStore.exists(folder) else StudyStore.create(folder, {"metric": "segm/AP50"})
    return study_of("table", table or make_table(), store)


def params_of(study, proposal) -> dict:
    return json.loads(study.store.trial(proposal.number).params)


def runs_left(study) -> list[tuple[str, int]]:
    """(row, repeat) of everything that the study still proposes."""
    runs = []
    while (proposal := study.propose()) is not None:
        runs.append(tuple(params_of(study, proposal).values()))
    return runs


# Files


def test_a_file_with_rows_is_an_ablation_and_one_with_a_space_is_not(path, tmp_path):
    ablation = load_experiment(path)
    assert isinstance(ablation, Ablation)
    assert experiment_from_json(ablation.to_json(), "study.json") == ablation
    space = load_experiment(Path(__file__).parents[3] / "spaces/quickstart.yaml")
    assert isinstance(space, Space)
    assert experiment_from_json(space.to_json(), "study.json") == space
    both = tmp_path / "both.yaml"
    both.write_text("space: {}\nrows: {}")
    with pytest.raises(UserError, match=r"must have space .* or rows .*, but got both"):
        load_experiment(both)


def test_nested_and_dotted_fields_are_one():
    assert make_table().settings("slow") == {"model.weights": "none", "train.epochs": 3, "optim.lr": 1e-5}


def test_a_row_without_anything_is_the_common_config(path):
    assert load_ablation(path).settings("base") == {"model.weights": "none", "train.epochs": 3}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"repeat": 2}, r"repeat: must be a setting, but got an unknown name. Did you mean 'repeats'\?"),
        ({"optim.lr": 2}, "optim.lr: a config field must stand under common"),
        ({"overridden": {"optim.lr": 1.0}}, "overridden: must be a setting, but got an unknown name"),
        ({"repeats": 0}, "repeats: must be greater than or equal to 1, but got 0"),
        ({"direction": "minimize"}, "direction: must be 'maximize' for segm/AP50, but got 'minimize'"),
        ({"resources": {"gpus": 1}}, r"resources.gpus: must be a setting, .* Did you mean 'gpu'\?"),
        ({"measured": ["count/cells"]}, r"measured: count/cells: must be a validation metric, .* 'count/detections'\?"),
        ({"measured": []}, "measured: must name at least one, but got none"),
        ({"rows": {}}, "rows: must name at least one, but got none"),
        ({"rows": {"a,b": {}}}, "rows: a name must be text without commas, but got 'a,b'"),
        ({"rows": {"a": {"notes": "x"}}}, r"rows.a.notes: must be a setting, .* Did you mean 'note'\?"),
        ({"rows": {"a": {"config": {"optim.rate": 1}}}}, "rows.a: optim.rate: must be a config field"),
        ({"rows": {"a": {"config": {"optim.lr": -1}}}}, "rows.a: optim.lr: must be greater than 0, but got -1"),
        ({"rows": {"a": {"config": {"optim.lr": float("inf")}}}}, "rows.a: optim.lr: must be a finite number"),
        ({"rows": {"a": {"config": {"train.seed": 1}}}}, "rows.a: train.seed: is set by the ablation"),
        ({"rows": {"a": {"config": {"data.fold": 1}}}}, "rows.a: data.fold: must be the same in all rows"),
        ({"rows": {"a": {"config": {"optim.momentum": 0.5}}}}, "rows.a: optim.momentum: must have an effect, but got"),
        ({"common": {"optim.gamma": 0.5}}, "common: optim.gamma: must have an effect in some row, but got"),
        ({"rows": {"a": {}, "b": {"same_as": "c"}}}, "rows.b.same_as: c: must be another row, but got an unknown name"),
        ({"rows": {"a": {"same_as": "a"}}}, "rows.a: same_as must name another row that is trained, but got 'a'"),
        (
            {"rows": {"a": {}, "b": {"same_as": "a", "config": {"optim.lr": 1.0}}}},
            "rows.b: a row that is the same as another has no config, but got optim.lr",
        ),
        ({"rows": {"a": {}, "b": {}}}, "rows.b: rows must differ in what they train, but got the config of 'a'"),
        (
            {"rows": {"a": {"config": {"data": {"shorter_side": 2000}}}}},
            "rows.a: data.shorter_side: shorter_side <= longer_side must hold",
        ),
    ],
)
def test_a_problem_is_told_with_its_place(settings, problem):
    with pytest.raises(UserError, match=problem):
        make_table(**settings)


def test_rows_that_differ_in_a_field_without_effect_are_the_same():
    common = {"optim.optimizer": "sgd", "optim.momentum": 0.5}
    rows = {"a": {"config": {"optim.optimizer": "adamw"}}, "b": {"config": {"optim.momentum": 0.8}}}
    assert make_table(common=common, rows=rows).trials == 4
    with pytest.raises(UserError, match=r"rows.b: optim.momentum: must have an effect.*\n.*the config of 'a'"):
        make_table(common=common, rows=rows | {"b": {"config": {"optim.optimizer": "adamw", "optim.momentum": 0.8}}})


def test_all_problems_are_told_at_once_and_each_once():
    with pytest.raises(UserError) as caught:
        parse_ablation({"metric": "segm/AP5", "rows": {"a": {"confg": {}}}, "common": {"optim.lr": 1}}, "t.yaml")
    problems = caught.value.problems
    assert all(problem.startswith("t.yaml: ") for problem in problems)
    assert len(problems) == len(set(problems)) == 6, "title, source, direction, measured, confg, metric"


def test_a_rule_that_many_rows_break_is_told_once():
    rows = {name: {"config": {"optim.lr": rate}} for name, rate in (("a", 1.0), ("b", 2.0))}
    with pytest.raises(UserError) as caught:
        make_table(common={"data.fold": 7}, rows=rows)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("table.yaml: rows.a, b: data.fold: fold < num_folds must hold")


def test_the_command_line_sets_a_field_in_all_rows_and_changes_settings(path):
    table = load_ablation(path, ["model.backbone=resnet18", "epochs=1", "repeats=1", "resources.cpu=2"])
    assert table.resources.cpu == 2
    assert [(p["row"], p["repeat"]) for p in table.runs] == [("base", 0), ("slow", 0)]
    for name in table.rows:
        config = table.row_config(name)
        assert (config.model.backbone, config.train.epochs) == ("resnet18", 1)
    assert table.overridden == {"model.backbone": "resnet18", "train.epochs": 1}


def test_the_command_line_may_make_rows_alike(path):
    assert load_ablation(path, ["optim.lr=1e-3"]).trials == 4


@pytest.mark.parametrize(
    ("overrides", "rows", "problem"),
    [
        (["trials=3"], (), "--trials: an ablation trains each row `repeats` times, but got 3"),
        (["train.epoch=3"], (), r"--set train.epoch: must be a config field or a setting, .* 'train.epochs'\?"),
        (["data.fold=9"], (), "rows.base, slow: data.fold: fold < num_folds must hold"),
        ((), ["bas"], r"--rows: bas: must be a row, but got an unknown name. Did you mean 'base'\?"),
    ],
)
def test_a_command_line_that_does_not_fit_is_told(path, overrides, rows, problem):
    with pytest.raises(UserError, match=problem):
        load_ablation(path, overrides, rows)


def test_rows_are_chosen_in_tables_only(tmp_path, capsys):
    space = tmp_path / "space.yaml"
    space.write_text("space: {}")
    assert main([str(space), "--rows", "a"]) == 2
    assert f"--rows: is for ablations, but got {space}, which has no rows" in capsys.readouterr().err


def test_a_dry_run_tells_of_the_chosen_rows_alone(path, capsys):
    assert main([str(path), "--dry-run", "--rows", "slow", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 row x 2 repeats, 2 trials, 2 epochs in all" in out
    assert "\nslow " in out
    assert "\nbase " not in out


def test_the_example_of_the_documentation_is_sound():
    text = (Path(__file__).parents[3] / "docs" / "reports.md").read_text()
    table = parse_ablation(parse_yaml(text.split("```yaml\n")[1].split("```")[0]), "docs/reports.md")
    assert table.trials == 6


def test_a_table_survives_its_json():
    table = make_table(common={"optim.clip_norm": None, "train.epochs": 3}, resources={"cpu": 2})
    table = table.model_copy(update={"overridden": {"train.epochs": 1}})
    again = Ablation.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.settings("base") == {"optim.clip_norm": None, "train.epochs": 1}


def test_the_fingerprint_covers_what_is_trained_and_nothing_else():
    table = make_table()
    rows = CONTENT["rows"]
    for same in ({"repeats": 9}, {"keep": 1}, {"title": "x"}, {"measured": ["segm/AP"]}, {"notes": ["x"]}):
        assert make_table(**same).fingerprint == table.fingerprint, same
    for other in (
        {"seed": 1},
        {"metric": "segm/AP"},
        {"common": {"train.epochs": 4}},
        {"rows": rows | {"slow": {"config": {"optim.lr": 2e-5}}}},
    ):
        assert make_table(**other).fingerprint != table.fingerprint, other


# Studies


def test_every_row_is_run_once_for_each_repeat_and_repeats_share_their_seed(tmp_path):
    study = make_study(tmp_path / "table")
    proposals = []
    while (proposal := study.propose()) is not None:
        proposals.append(proposal)
    runs = [tuple(params_of(study, proposal).values()) for proposal in proposals]
    assert runs == [("base", 0), ("slow", 0), ("base", 1), ("slow", 1)], "a row that is the same as another is not run"
    assert [proposal.config["train.seed"] for proposal in proposals] == [trial_seed(0, k) for k in (0, 0, 1, 1)]
    for proposal in proposals:
        config = TrialConfig.from_flat(proposal.config)
        assert (config.train.epochs, config.train.metric, config.model.weights) == (3, "segm/AP50", "none")
    assert [proposal.config["optim.lr"] for proposal in proposals] == [1e-4, 1e-5, 1e-4, 1e-5]


def test_no_run_is_stopped_however_bad_it_is(tmp_path):
    study = make_study(tmp_path / "table")
    for value in (0.9, 0.1, 0.0, 0.5):
        number = study.propose().number
        assert all(study.report(number, make_report(epoch, value)) for epoch in (1, 2, 3))
        study.end(number, "epochs")
    assert study.is_over


@pytest.mark.parametrize("ending", ["out-of-memory", "non-finite", "invalid", "bug", "lost"])
def test_failed_runs_are_results_and_do_not_end_the_table(tmp_path, ending):
    study = make_study(tmp_path / "table")
    for _ in range(4):
        study.end(study.propose().number, ending, "always the same")
    assert study.propose() is None
    assert study.is_over
    assert study.abort_reason is None
    assert make_study(tmp_path / "table").is_over, "nor are they tried again by the next command"


def test_an_interrupted_table_goes_on_with_what_is_left(tmp_path):
    study = make_study(tmp_path / "table")
    first, second = study.propose(), study.propose()
    study.report(first.number, make_report(1, 0.5))
    study.end(first.number, "epochs")
    again = make_study(tmp_path / "table")
    assert again.propose() == second
    assert runs_left(again) == [("base", 1), ("slow", 1)]


def test_more_repeats_continue_a_finished_table(tmp_path):
    study = make_study(tmp_path / "table")
    while (proposal := study.propose()) is not None:
        study.end(proposal.number, "invalid")
    again = make_study(tmp_path / "table", make_table(repeats=3))
    assert runs_left(again) == [("base", 2), ("slow", 2)]


def test_some_rows_can_be_run_before_the_others(tmp_path):
    slow = make_table().model_copy(update={"selected": ("slow",)})
    study = make_study(tmp_path / "table", slow)
    first, _ = study.propose(), study.propose()
    assert study.propose() is None
    study.end(first.number, "invalid")
    base = make_table().model_copy(update={"selected": ("again",)})
    assert runs_left(make_study(tmp_path / "table", base)) == [("base", 0), ("base", 1)], "it stands for `again`"
    whole = make_study(tmp_path / "table")
    assert sorted(runs_left(whole)) == [("base", 0), ("base", 1), ("slow", 1)], "all but what had ended"


def test_a_description_names_what_sets_a_row_apart():
    lines = make_table().describe()
    assert lines[0] == "maximize segm/AP50: 2 rows x 2 repeats, 4 trials, 12 epochs in all, seed 0"
    assert "base   nothing else" in lines
    assert "slow   optim.lr=1e-05" in lines
    assert "again  the same run as base" in lines


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"limits": {"target": 0.9}},
            r"limits\.target: an ablation trains every row, whatever its value, but got 0\.9",
        ),
        ({"limits": {"plateau_trials": 5}}, r"limits\.plateau_trials: an ablation trains every row.*but got 5"),
        ({"limits": {"gpu_hours": 5}}, r"limits\.gpu_hours: needs resources\.gpu > 0.*but got no resources"),
        ({"limits": {"hour": 5}}, r"limits\.hour: must be a setting.*Did you mean 'hours'"),
        ({"objective": {"per": "seconds"}}, r"objective: must be a setting"),
    ],
)
def test_a_table_has_no_limits_on_values_and_no_cost(settings, problem):
    with pytest.raises(UserError, match=problem):
        make_table(**settings)


def test_a_table_can_be_limited_in_time_and_goes_on_later(tmp_path, path):
    table = load_ablation(path, ["limits.hours=2"])
    assert "limits: 2 h of wall-clock" in table.describe()
    assert Ablation.from_json(json.loads(json.dumps(table.to_json()))) == table
    now = [0.0]
    store = StudyStore.create(tmp_path / "s", {"metric": "segm/AP50"})
    study = study_of("table", table, store, clock=lambda: now[0])
    running = study.propose()
    study.start()
    now[0] = 7200.0
    assert study.must_stop and study.propose() is None
    study.interrupt()
    raised = load_ablation(path, ["limits.hours=3"])
    assert raised.fingerprint == table.fingerprint
    assert study_of("table", raised, StudyStore.open(tmp_path / "s")).propose() == running
