"""What a study measured, as a table for people; read from its tables alone."""

import subprocess
import sys

import pytest
from fakes import make_report, make_space, study_of

from search.ablation import Ablation, parse_ablation
from search.ablation.results import Measurement, measure
from search.report import main
from search.storage.store import StudyStore
from search.study.study import Study
from search.views.study_report import study_report

TABLE = {
    "title": "learning rates",
    "source": "Made up for a test.",
    "metric": "segm/AP50",
    "direction": "maximize",
    "repeats": 3,
    "measured": ["segm/AP50", "count/detections"],
    "common": {"model.weights": "none", "train.epochs": 2},
    "rows": {
        "base": {"reported": {"val AP50": 0.31, "instances": 3669}, "note": "One run."},
        "large [b]": {"config": {"optim.lr": 1e-3}, "reported": {"val AP50": "out of memory"}},
        "slow": {"config": {"optim.lr": 1e-5}, "reported": {"val AP50": 0.1}, "without_effect": "It was swallowed."},
        "again": {"same_as": "base", "reported": {"val AP50": 0.31}},
    },
    "notes": ["Of all rows."],
}


def open_study(folder, experiment) -> Study:
    described = {"metric": experiment.metric, "space": experiment.to_json(), "data_root": "/cells", "created": "today"}
    return study_of(folder.name, experiment, StudyStore.create(folder, described))


@pytest.fixture
def measured(tmp_path):
    """A results folder with a table, half done: base has two runs of three, large failed thrice, slow once begun."""
    study = open_study(tmp_path / "rates", parse_ablation(TABLE, "rates.yaml"))
    running = []
    while (proposal := study.propose()) is not None:
        running.append(proposal.number)
    base, large, slow = running[::3], running[1::3], running[2::3]
    for number, values in zip(base, ([0.2, 0.1], [0.3, 0.4]), strict=False):
        best = 0.0
        for epoch, value in enumerate(values, start=1):
            best, at = max((best, epoch - 1), (value, epoch))
            report = make_report(epoch, value, **{"count/detections": 100.0 * epoch})
            study.report(number, report | {"best_value": best, "best_epoch": at})
        study.end(number, "epochs")
    study.end(large[0], "out-of-memory", "tried to allocate 80 GiB")
    study.end(large[1], "bug", "Traceback (most recent call last):\n  File x\nKeyError: 'x'")
    study.end(large[2], "out-of-memory", "tried to allocate 80 GiB")
    study.report(slow[0], make_report(1, 0.9))
    study.interrupt()
    return tmp_path


def cells(report) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    rows = zip(*(map(str, column.cells) for column in report.table.columns), strict=True)
    return {name: rest for name, *rest in rows}


def test_figures_are_mean_and_deviation_at_the_best_epochs(measured):
    report = study_report(StudyStore.open(measured / "rates"))
    assert [str(column.header) for column in report.table.columns] == [
        "row",
        "reported val AP50",
        "reported instances",
        "segm/AP50",
        "count/detections",
        "runs",
    ]
    rows = cells(report)
    # best values 0.2 in epoch 1 and 0.4 in epoch 2; detections 100 and 200 in these epochs
    assert rows["base"] == ["0.3100", "3669", "0.3000 ± 0.1414 (2)", "150.0 ± 70.7 (2)", "2 of 3, 1 running"]
    assert rows["again"] == ["0.3100", "-", "0.3000 ± 0.1414 (2)", "150.0 ± 70.7 (2)", "those of base"]


def test_failures_stand_in_the_table_with_their_reasons_below(measured):
    report = study_report(StudyStore.open(measured / "rates"))
    assert cells(report)["large [b]"][2:] == ["out-of-memory, bug", "out-of-memory, bug", "3 of 3"]
    assert report.footnotes["Failed runs"] == (
        "large [b], repeat 0: out-of-memory: tried to allocate 80 GiB",
        "large [b], repeat 1: bug: KeyError: 'x'",
        "large [b], repeat 2: out-of-memory: tried to allocate 80 GiB",
    )


def test_a_run_that_has_not_ended_is_not_measured(measured):
    assert cells(study_report(StudyStore.open(measured / "rates")))["slow"][2:] == ["-", "-", "0 of 3, 3 running"]


def test_the_command_prints_table_notes_and_what_had_no_effect(measured, capsys):
    assert main(["--results", str(measured)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("rates: learning rates\nMade up for a test.\nMeasured on the validation images of /cells")
    assert "large [b]" in out
    assert out.count("Reported settings that could not have had an effect in the original code:") == 1
    notes, without_effect = out.split("could not have had an effect")
    assert "- Of all rows.\n- base: One run.\n" in notes
    assert "- slow: It was swallowed." in without_effect
    assert "Not as reported" not in out


def test_settings_of_the_command_line_are_told(tmp_path):
    table = parse_ablation(TABLE, "x").model_copy(update={"overridden": {"train.epochs": 1}})
    report = study_report(open_study(tmp_path / "toy", table).store)
    assert "Not as reported: all rows have train.epochs=1." in report.introduction
    assert cells(report)["base"][2:] == ["-", "-", "0 of 3"]


def test_reading_a_study_does_not_change_it(measured):
    before = {path: path.read_bytes() for path in (measured / "rates").rglob("*") if path.is_file()}
    study_report(StudyStore.open(measured / "rates"))
    assert {path: path.read_bytes() for path in (measured / "rates").rglob("*") if path.is_file()} == before


def test_markdown_holds_the_same(measured, capsys):
    target = measured / "new" / "rates.md"
    assert main(["--results", str(measured), "--markdown", str(target)]) == 0
    lines = target.read_text().splitlines()
    assert lines[0] == "## rates: learning rates"
    assert "| row | reported val AP50 | reported instances | segm/AP50 | count/detections | runs |" in lines
    assert "| base | 0.3100 | 3669 | 0.3000 ± 0.1414 (2) | 150.0 ± 70.7 (2) | 2 of 3, 1 running |" in lines
    assert "- slow: It was swallowed." in lines
    assert f"{target}: the report as Markdown" in capsys.readouterr().out


def test_a_search_has_its_leaderboard(tmp_path, capsys):
    study = open_study(tmp_path / "search", make_space())
    for value in (0.2, 0.6):
        number = study.propose().number
        study.report(number, make_report(1, value, ending="epochs"))
        study.end(number, "epochs")
    target = tmp_path / "search.md"
    assert main(["--study", "search", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "maximize segm/AP50: 2 trials of up to 4 epochs (2 complete)" in out
    assert "Best: trial t0001, segm/AP50 0.6000 in epoch 1" in out
    assert out.index("t0001 ") < out.index("t0000 ")
    arguments = ["--study", "search", "--results", str(tmp_path), "--markdown", str(target)]
    assert main(arguments) == 0
    assert "| 1 | t0001 | complete | 1/4 | 0.6000 @1 |" in target.read_text()


def test_a_search_has_its_front_of_metric_and_cost(tmp_path, capsys):
    study = open_study(tmp_path / "search", make_space(asha=False))
    for value, seconds, node in ((0.5, 1.0, "a"), (0.6, 2.0, "b"), (0.4, 3.0, "a")):
        number = study.propose().number
        study.report(number, make_report(1, value) | {"seconds": seconds}, node)
        study.end(number, "epochs")
    target = tmp_path / "search.md"
    assert main(["--results", str(tmp_path), "--markdown", str(target)]) == 0
    out, text = capsys.readouterr().out, target.read_text()
    for shown in (out, text):
        assert "Pareto front of fully trained trials: no other is as good in both segm/AP50 and a cost" in shown
        assert "Compare seconds only between machines of one kind; trials ran on a, b." in shown
    assert "| trial | segm/AP50 | s/epoch | M parameters | GiB |" in text
    assert "| t0001 | 0.6000 | 2 * | 0.001 * | 0.000931 * |" in text
    assert "| t0000 | 0.5000 | 1 * | 0.001" in text
    assert "t0002" not in text.split("Pareto front")[1]


def test_a_search_that_weighs_a_cost_says_so(tmp_path):
    space = make_space(objective={"per": "seconds", "doubling": 0.1})
    described = {"metric": space.metric, "objective": space.objective.model_dump(), "space": space.to_json()}
    store = StudyStore.create(tmp_path / "s", described | {"data_root": "/cells", "created": "today"})
    report = study_report(store)
    assert "Ranked by segm/AP50 per s/epoch, twice the cost must make it 10 % better." in report.introduction
    assert not list(report._further()), "no trial, no front"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--study", "nothing"], "must hold a study"),
        (["--study", "../x"], "--study: must be 1 to 80 letters"),
        ([], "must hold a study, but got none"),
    ],
)
def test_without_a_study_there_is_a_line(tmp_path, capsys, arguments, problem):
    assert main([*arguments, "--results", str(tmp_path / "none")]) == 2
    assert problem in capsys.readouterr().err


def test_one_run_has_no_deviation_and_a_metric_nobody_measured_no_figure():
    row = Measurement(values={"segm/AP": [0.5]}, num_complete=1)
    assert row.describe("segm/AP") == "0.5000 ± - (1)"
    assert row.describe("loss/validation") == "-"


def test_values_that_are_missing_in_an_epoch_are_left_out(measured):
    store = StudyStore.open(measured / "rates")
    table = Ablation.from_json(store.study["space"])
    assert measure(table, store.trials(), {})["base"].describe("segm/AP50") == "-"


def test_the_tables_load_neither_torch_nor_ray_nor_optuna(measured):
    script = (
        "import sys; from search.report import main;"
        "assert main([*sys.argv[1:], '--no-html']) == 0;"
        "assert not {'torch', 'ray', 'optuna', 'cv2', 'albumentations'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--results", str(measured)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
