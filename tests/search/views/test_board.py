"""What people see while a study runs."""

import io
import re
from typing import Any

import pytest
from fakes import finish, make_report, make_study, told
from rich.console import Console

from search.views.board import Board
from search.views.leaderboard import format_value, leaderboard_table, pareto_table, show_front


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, "cells", trials=40, asha=False)


def console(terminal: bool = False) -> Any:
    return Console(file=io.StringIO(), width=160, force_terminal=terminal, color_system=None)


def shown(renderable) -> str:
    out = console()
    out.print(renderable)
    return out.file.getvalue()


def run(study, values, ending: str | None = "epochs", detail: str = "") -> None:
    for value in values:
        number = study.propose().number
        study.report(number, make_report(1, value, ending=told(ending)))
        if ending:
            finish(study, number, ending, detail)


def test_a_log_gets_a_line_for_each_trial_that_moved(study):
    out = console()
    board = Board(study, out)
    number = study.propose().number
    for step in (
        lambda: None,
        lambda: study.report(number, make_report(1, 0.25)),
        lambda: study.end(number, "pruned", "at epoch 1"),
        lambda: None,
    ):
        step()
        board.update()
    assert out.file.getvalue().splitlines() == [
        "t0000  running      epoch 0/4",
        "t0000  running      epoch 1/4  best segm/AP50 0.2500",
        "t0000  pruned       epoch 1/4  best segm/AP50 0.2500  (pruned: at epoch 1)",
    ]


def test_a_continued_study_does_not_tell_its_past_again(study):
    run(study, [0.1, 0.2])
    out = console()
    Board(study, out).update()
    assert out.file.getvalue() == ""


@pytest.mark.parametrize("detail", ["[/data/x] is missing", "expected [2, 3]", "a\nTraceback\nKeyError: '[bold]'"])
def test_texts_of_errors_are_shown_as_they_are(study, detail):
    out = console()
    board = Board(study, out)
    run(study, [0.1], "bug", detail)
    board.update()
    assert f"({'bug: ' * ('Trace' not in detail)}{detail.splitlines()[-1]})" in out.file.getvalue()


def test_on_a_screen_there_is_a_header_and_a_table_and_no_lines(study):
    run(study, [0.1, 0.3])
    study.propose()
    out = console(terminal=True)
    board = Board(study, out)
    board.update()
    assert out.file.getvalue() == ""
    with board.shown():
        pass
    text = shown(board.render())
    assert text.startswith("cells: 2 of 40 trials (1 running, 2 complete) 0:0")
    assert "segm/AP50" in text


def test_the_header_says_how_much_of_each_limit_is_used_and_which_ended_the_search(tmp_path):
    limits = {"plateau_trials": 2, "gpu_hours": 8}
    study = make_study(tmp_path, "cells", trials=40, asha=False, limits=limits, resources={"gpu": 1})
    board = Board(study, console())
    run(study, [0.5, 0.4])
    header = shown(board.render()).splitlines()[0]
    assert header.endswith("0.00 of 8 GPU-hours, 1 of 2 trials without a new best")
    run(study, [0.3])
    text = " ".join(shown(board.render()).split())
    assert "ended by limits.plateau_trials: 2 trials in a row without a new best" in text


def test_a_study_that_weighs_a_cost_shows_objective_and_cost_beside_the_metric(tmp_path):
    study = make_study(tmp_path, "cells", asha=False, objective={"per": "parameters", "doubling": 0.1})
    for value, parameters in ((0.5, 1_000_000), (0.52, 2_000_000), (0.6, None)):
        number = study.propose().number
        study.report(number, make_report(1, value) | {"parameters": parameters})
        study.end(number, "epochs")
    lines = shown(leaderboard_table(study)).splitlines()
    assert lines[0].split()[:8] == ["trial", "state", "epochs", "segm/AP50", "objective", "M", "parameters", "lr"]
    assert lines[1].split()[:8] == ["1", "t0000", "complete", "1/4", "0.5000", "@1", "0.5000", "1"]
    assert lines[2].split()[:8] == ["2", "t0001", "complete", "1/4", "0.5200", "@1", "0.4727", "2"]
    assert lines[3].split()[:6] == ["t0002", "complete", "1/4", "0.6000", "@1", "-"], "its cost is not known: no rank"


def test_the_front_has_a_star_at_each_cost_that_a_trial_is_not_beaten_at(tmp_path):
    study = make_study(tmp_path, "cells", asha=False)
    for value, seconds, parameters in ((0.5, 1.0, 3_000_000), (0.6, 2.0, 2_000_000), (0.4, 3.0, 4_000_000)):
        number = study.propose().number
        study.report(number, make_report(1, value) | {"seconds": seconds, "parameters": parameters})
        study.end(number, "epochs")
    table = pareto_table(study, ["seconds", "parameters"])
    assert [" ".join(line.split()) for line in shown(table).splitlines()] == [
        "trial segm/AP50 s/epoch M parameters",
        "t0001 0.6000 2 * 2 *",
        "t0000 0.5000 1 * 3",
    ]


def test_after_a_search_the_front_of_its_cost_is_printed_if_there_is_one(study, tmp_path):
    out = console()
    run(study, [0.5], "pruned")
    show_front(study, out)
    assert out.file.getvalue() == "", "nothing was trained to its end"
    run(study, [0.4])
    show_front(study, out)
    assert "s/epoch" in out.file.getvalue() and "t0001" in out.file.getvalue()
    weighed = make_study(tmp_path, "weighed", objective={"per": "memory"})
    run(weighed, [0.4])
    out = console()
    show_front(weighed, out)
    assert "GiB" in out.file.getvalue() and "s/epoch" not in out.file.getvalue()


def test_without_a_screen_there_is_no_live_table(study):
    out = console()
    with Board(study, out).shown():
        pass
    assert out.file.getvalue() == ""


def test_the_table_has_the_best_first_with_the_values_that_tell_trials_apart(study):
    run(study, [0.1, 0.3, 0.2])
    run(study, [0.9], "bug", "late")
    lines = shown(leaderboard_table(study)).splitlines()
    assert lines[0].split() == ["trial", "state", "epochs", "segm/AP50", "lr", "batch_size"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["1", "t0003", "failed"],
        ["2", "t0001", "complete"],
        ["3", "t0002", "complete"],
        ["4", "t0000", "complete"],
    ]
    assert re.search(r"1/4 +0\.3000 @1 +0\.\d+ +[124]$", lines[2].rstrip())


def test_a_loss_is_shown_as_it_is_and_the_lowest_first(tmp_path):
    study = make_study(tmp_path, "losses", asha=False, metric="loss/validation", direction="minimize")
    out = console()
    board = Board(study, out)
    for value in (1.5, 0.5):
        number = study.propose().number
        study.report(number, make_report(1, value, metric="loss/validation"))
        study.end(number, "epochs")
    lines = shown(leaderboard_table(study)).splitlines()
    assert "loss/validation" in lines[0]
    assert [line.split()[:2] for line in lines[1:]] == [["1", "t0001"], ["2", "t0000"]]
    assert "0.5000 @1" in lines[1]
    board.update()
    assert "t0001  complete     epoch 1/4  best loss/validation 0.5000  (epochs)" in out.file.getvalue()


def test_running_trials_are_shown_with_their_true_rank_however_bad_they_are(study):
    run(study, [0.5 + number / 100 for number in range(20)])
    run(study, [0.01], ending=None)
    study.propose()
    lines = shown(leaderboard_table(study, max_rows=5)).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["1", "2", "3", "21", "t0021"]
    assert "and 17 more" in lines[6]


def test_a_study_without_trials_can_be_shown(study):
    assert "trial" in shown(leaderboard_table(study))
    assert "starting" in shown(Board(study, console()).render())


@pytest.mark.parametrize(("value", "text"), [(0.00123456, "0.00123"), (3, "3"), ("adamw", "adamw"), (None, "None")])
def test_values_are_short(value, text):
    assert format_value(value) == text


def test_a_log_and_a_screen_say_what_trials_wait_for_and_what_else_a_person_should_know(study):
    log, screen = console(), console(terminal=True)
    for out in (log, screen):
        board = Board(study, out)
        board.note("host-a [x] is avoided from now on")
        board.wait("waiting for 2 GPUs: none is there")
        assert "waiting for 2 GPUs: none is there" in shown(board.render())
        board.wait("")
        assert "waiting" not in shown(board.render())
    assert log.file.getvalue().splitlines() == [
        "host-a [x] is avoided from now on",
        "waiting for 2 GPUs: none is there",
    ]
    assert screen.file.getvalue().splitlines() == ["host-a [x] is avoided from now on"]


def test_quiet_shows_notes_and_nothing_else(study):
    for terminal in (False, True):
        out = console(terminal)
        board = Board(study, out, quiet=True)
        with board.shown():
            run(study, [0.1])
            board.update()
            board.note("one machine is avoided")
            board.wait("waiting for 1 CPU")
        assert out.file.getvalue().splitlines() == ["one machine is avoided", "waiting for 1 CPU"]


def test_the_board_says_at_once_that_it_stops_and_how_many_slots_are_idle(study):
    board = Board(study, console())
    run(study, [0.1])
    study.propose()
    board.slots(3)
    assert "2 of 3 slots idle" in shown(board.render())
    study.interrupt()
    assert "Stopping: trials are kept" in shown(board.render())


def test_a_log_says_what_to_try_when_a_trial_fails(study):
    out = console()
    board = Board(study, out)
    run(study, [0.1], "non-finite", "loss_mask in epoch 1")
    board.update()
    assert "(non-finite: loss_mask in epoch 1)  try: lower the upper end of optim.lr" in out.file.getvalue()


def test_a_search_that_is_through_does_not_stop(tmp_path):
    study = make_study(tmp_path, "one", trials=1, asha=False)
    run(study, [0.1])
    study.interrupt()  # as the driver does in the end
    assert "Stopping" not in shown(Board(study, console()).render())
