"""The board as people see it, at four widths, of a small space and of one with more parameters than any screen holds.

After a deliberate change, ``CELLSEG_WRITE_SNAPSHOTS=1`` writes the files anew; look at them before you commit them.
"""

import io
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from made_study import make_tables, write_progress
from rich.console import Console

from search.space import load_space
from search.views import summary
from search.views.board import BoardView
from search.views.leaderboard import leaderboard_table
from search.views.standings import StudyTables

ROOT = Path(__file__).parents[3]
SNAPSHOTS = Path(__file__).parent / "snapshots"
SIZES = [(60, 24), (80, 24), (120, 30), (200, 50)]
NUM_TRIALS = {"quickstart": 7, "full": 120}


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """A view of each study, of which six or two trials run: one that starts, one that has told nothing yet."""
    made = {}
    for name, trials in NUM_TRIALS.items():
        running = 2 if trials < 10 else 6
        space = load_space(ROOT / "spaces" / f"{name}.yaml")
        store = make_tables(tmp_path_factory.mktemp("board") / name, space, trials, running=running)
        for place, number in enumerate(range(trials - running, trials)):
            facts = {"epoch": store.trial(number).epochs + 1, "done": 3 + 4 * place, "total": 30, "epoch_seconds": 5.0}
            facts |= {"images_per_second": 12.34, "memory_bytes": 2**31, "device": "cpu"}
            if place == 1:
                write_progress(store, number, phase="starting")
            elif place != 2:
                write_progress(store, number, phase="training", **facts)
        view = BoardView(StudyTables.of(store), lambda: 3725.0)
        view.slots = running + 2
        made[name] = view
    return made


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch):
    monkeypatch.setattr(summary, "now", lambda: datetime(2026, 3, 2, tzinfo=UTC))


def drawn(renderable, width: int, height: int) -> list[str]:
    file = io.StringIO()
    out = Console(file=file, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False)
    out.print(renderable)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("name", NUM_TRIALS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_board_looks_as_it_was_looked_at(views, name, width, height):
    text = "\n".join(drawn(views[name], width, height)) + "\n"
    path = SNAPSHOTS / f"{name}-{width}.txt"
    if os.environ.get("CELLSEG_WRITE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NUM_TRIALS)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [8, 12, 16, 24, 50])
def test_the_board_is_never_larger_than_the_screen(views, name, width, height):
    lines = drawn(views[name], width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", NUM_TRIALS)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_rank_trial_state_epochs_and_metric_are_whole_at_any_width(views, name, width):
    study = views[name]._study
    lines = drawn(leaderboard_table(study, width=width), width, 50)
    best = study.leaderboard[0]
    assert lines[0].split()[:4] == ["trial", "state", "epochs", "segm/AP50"]
    row = next(line for line in lines if line.startswith("1 "))
    assert row.split()[:3] == ["1", f"t{best.number:04d}", best.state.lower()]
    assert f"{best.metric:.4f} @{best.best_epoch}" in row
    assert "…" not in row[: row.index("@")]


def test_running_trials_have_bars_speeds_and_times_before_their_first_epoch_ends(views):
    study = views["full"]._study
    store = study.store
    number = next(row.number for row in study.rows if row.state == "RUNNING")
    before = store.trial(number)
    store.put_trial(replace(before, epochs=0, metric=None, best_epoch=None, seconds_per_epoch=None))
    try:
        line = next(line for line in drawn(views["full"], 120, 50) if line.startswith(f"t{number:04d}"))
    finally:
        store.put_trial(before)
    assert "1/54" in line and "━" in line and "12.3" in line
    # 3 of 30 batches took 5 s: 54 epochs of 50 s, less 5
    assert "44:55 min" in line
