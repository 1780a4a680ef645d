"""Figures for papers: the page's numbers, drawn by matplotlib."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from fakes import make_space
from made_study import make_tables

from cellseg.errors import UserError
from search.report import main
from search.storage.store import StudyStore
from search.views import paper
from search.views.html.blocks import Figure
from search.views.html.progress_figures import curves_section
from search.views.html.source import Source
from search.views.paper import draw, main_figures, write_figures
from search.views.standings import StudyTables

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="the extra figures is not installed")
NAMES = ["history", "curves", "rungs", "importance", "cost-seconds", "cost-parameters", "cost-memory"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> StudyStore:
    return make_tables(tmp_path_factory.mktemp("made") / "cells", make_space(epochs=9), 60, running=2)


@needs_matplotlib
def test_the_command_draws_every_main_figure_as_vectors_and_as_a_bitmap(store, tmp_path, capsys):
    words = ["--results", str(store.folder.parent), "--no-html", "--pdf", str(tmp_path), "--png", str(tmp_path / "png")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert [Path(path).name for path in re.findall(r"^Figure: (.+)$", out, re.MULTILINE)] == [
        *(f"{name}.pdf" for name in NAMES),
        *(f"{name}.png" for name in NAMES),
    ]
    for name in NAMES:
        content = (tmp_path / f"{name}.pdf").read_bytes()
        assert b"/CIDFontType2" in content or b"/TrueType" in content, "fonts that are embedded as letters"
        assert b"/Type3" not in content
        assert b"/Subtype /Image" not in content, "vectors only"
        assert (tmp_path / "png" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@needs_matplotlib
def test_the_same_study_makes_the_same_file(store, tmp_path):
    first, second = (write_figures(store, tmp_path / name, "pdf")[0].read_bytes() for name in "ab")
    assert first == second


@needs_matplotlib
def test_a_figure_shows_the_numbers_of_the_page_in_its_colours(store):
    from matplotlib.colors import to_hex

    (figure,) = curves_section(Source(StudyTables.of(store))).blocks
    axes = draw(figure).axes[0]
    assert len(axes.lines) == len(figure.data) >= 3
    for line, trace in zip(axes.lines, figure.data, strict=True):
        y = np.array([np.nan if value is None else value for value in trace["y"]])
        np.testing.assert_array_equal(line.get_ydata(), y)
        assert (to_hex(line.get_color()).upper(), line.get_label()) == (trace["line"]["color"], trace["name"])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "validation segm/AP50")


@needs_matplotlib
def test_axes_have_the_scales_ranges_and_ticks_of_the_page():
    trace = {"type": "scatter", "mode": "markers", "x": [1, 10], "y": [0, 1], "marker": {"color": "#000000"}}
    layout = {
        "xaxis": {"type": "log", "title": "a title that is too long to stand below an axis in a single line"},
        "yaxis": {"tickvals": [0, 1], "ticktext": ["low", "high"], "range": [-1, 2]},
    }
    axes = draw(Figure([trace], layout)).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_ylim() == (-1, 2)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["low", "high"]
    assert axes.get_xlabel().count("\n") == 1
    assert axes.figure.legends == []


@needs_matplotlib
def test_a_trace_without_a_form_here_is_noticed():
    with pytest.raises(ValueError, match="a trace of type parcoords has no form"):
        draw(Figure([{"type": "parcoords"}]))


def test_a_study_without_trials_has_no_figure(tmp_path):
    empty = make_tables(tmp_path / "empty", make_space(), 0)
    assert list(main_figures(Source(StudyTables.of(empty)))) == []


def test_figures_are_refused_before_anything_is_read(store, tmp_path, monkeypatch, capsys):
    assert main(["--study", "a", "--study", "b", "--results", str(tmp_path), "--pdf", "x"]) == 2
    assert "--pdf, --png: draw the figures of one study, but got 2 studies" in capsys.readouterr().err
    monkeypatch.setattr(paper, "find_spec", lambda name: None)
    assert main(["--results", str(tmp_path), "--png", "x"]) == 2
    assert "Run pip install 'cellseg-search[figures]'." in capsys.readouterr().err


@needs_matplotlib
def test_a_folder_that_cannot_be_is_an_error(store, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be a folder for figures"):
        write_figures(store, tmp_path / "file", "png")
