"""The report as a file: every section has content, nothing comes from elsewhere, and a browser is content."""

import json
import os
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import large_report
import pytest
from fakes import make_space
from made_study import make_tables

from search.ablation import parse_ablation
from search.report import main
from search.space import load_space
from search.storage.store import StudyStore
from search.views.html import page as page_module
from search.views.html.blocks import Figure, Pictures, Section, Table, Text
from search.views.html.page import study_sections, write_page, write_report
from search.views.html.source import MANY, Source, thin
from search.views.standings import StudyTables

ROOT = Path(__file__).parents[4]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.timeout(300)


PROBE = """
addEventListener("load", () => {
  // As for print: at once. Drawing what comes into sight needs frames, which virtual time does not wait for.
  dispatchEvent(new Event("beforeprint"));
  setTimeout(() => {
    const all = words => [...document.querySelectorAll(words)];
    const head = document.querySelector("#trials th:nth-child(5)");
    head.click(); head.click();
    const loaded = performance.getEntriesByType("resource").map(entry => entry.name);
    document.title = JSON.stringify({
      plots: all(".plot").length,
      drawn: all(".plot.js-plotly-plot").filter(place => place.querySelector(".main-svg")).length,
      wide: document.documentElement.scrollWidth,
      sorted: all("#trials tbody tr").map(row => row.cells[4].textContent).filter(Boolean).slice(0, 3),
      requests: loaded.filter(name => !name.startsWith("data:")),
    });
  }, 3000);
});
"""
"""Runs in the page; tells in its title what it has become."""


class Reader(HTMLParser):
    """Collects what a browser would load, and the text of scripts apart from it."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in {"src", "href", "action", "poster", "srcset", "data", "xlink:href"}:
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> StudyStore:
    """A study of 60 trials of a space with many parameters."""
    space = load_space(ROOT / "spaces" / "full.yaml")
    return make_tables(tmp_path_factory.mktemp("made") / "full", space, 60, running=2)


@pytest.fixture(scope="module")
def page(made) -> str:
    return write_report(made, made.folder.parent / "page.html").read_text(encoding="utf-8")


def test_every_section_has_content(made):
    sections = study_sections(Source(StudyTables.of(made)), "next")
    assert [section.id for section in sections] == [
        *("answer", "history", "curves", "rungs", "importance", "slices", "parallel", "cost", "failures", "data"),
        *("trials", "origin"),
    ]
    for section in sections:
        assert section.blocks, section.id
        for block in section.blocks:
            if isinstance(block, Figure):
                assert any(len(trace.get("x", trace.get("z", ()))) for trace in block.data), section.id
            if isinstance(block, Table):
                assert block.rows and all(len(row) == len(block.headers) for row in block.rows), section.id


def test_a_page_loads_nothing_from_anywhere(page):
    reader = Reader(page)
    assert reader.loads
    assert [load for load in reader.loads if not load.startswith(("#", "data:"))] == []
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert {load[1:] for load in reader.loads if load.startswith("#")} <= set(reader.ids)


def test_words_of_a_study_are_text_and_not_html(tmp_path):
    bad = "</script><img src=http://evil.example/x onerror=alert(1)>"
    figure = Figure([{"type": "scatter", "x": [1], "y": [float("nan")], "name": bad}], {"title": bad})
    path = tmp_path / "page.html"
    write_page(path, bad, bad, [Section("a", bad, [Text(bad), Table([bad], [[bad]]), figure])])
    text = path.read_text()
    assert not [load for load in Reader(text).loads if "evil" in load]
    (script,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert json.loads(script)["data"][0]["name"] == bad
    assert json.loads(script)["data"][0]["y"] == [None]


def test_a_study_without_a_result_has_a_report(tmp_path):
    store = make_tables(tmp_path / "empty", make_space(), 0)
    text = write_report(store).read_text()
    assert "No trial has reported a value yet." in text and "No trial failed." in text


def test_few_trials_have_no_importance_and_say_so(tmp_path):
    store = make_tables(tmp_path / "few", make_space(), 3)
    assert "Importance needs 10 trials that reached the same epoch" in write_report(store).read_text()


def test_failures_stand_there_with_what_to_try(page):
    assert "lower the upper end of optim.lr" in page and "out-of-memory" in page


def test_an_ablation_has_its_table(tmp_path):
    rows = {
        "base": {"reported": {"val AP50": 0.31}},
        "slow": {"config": {"optim.lr": 1e-5}, "reported": {"val AP50": 1.0}},
    }
    head = {
        "title": "rates",
        "source": "Made up.",
        "metric": "segm/AP50",
        "direction": "maximize",
        "repeats": 1,
        "measured": ["segm/AP50"],
    }
    table = parse_ablation(head | {"common": {"model.weights": "none", "train.epochs": 2}, "rows": rows}, "x")
    study = {"metric": "segm/AP50", "space": table.to_json(), "data_root": "/cells", "created": "today"}
    text = write_report(StudyStore.create(tmp_path / "rates", study)).read_text()
    assert "Ablation: rates" in text and "reported val AP50" in text and "0.3100" in text


def test_the_common_epoch_is_the_latest_that_many_trials_reached(made):
    source = Source(StudyTables.of(made))
    assert source.rungs == (2, 6, 18)
    counts = {epoch: len(source.values_at(epoch)) for epoch in (*source.rungs, 54)}
    assert counts[2] > counts[6] > counts[18]
    assert source.common_epoch == max(epoch for epoch, count in counts.items() if count >= MANY)


def test_thinning_keeps_both_ends():
    assert thin(range(10), 4) == [0, 3, 6, 9] and thin([1, 2], 9) == [1, 2]


def test_the_command_writes_the_page_beside_the_tables_or_elsewhere(made, tmp_path, capsys):
    folder = shutil.copytree(made.folder, tmp_path / "results" / "full")
    assert main(["--results", str(tmp_path / "results")]) == 0
    assert f"Report: {folder / 'report.html'}" in capsys.readouterr().out
    assert main(["--results", str(tmp_path / "results"), "--html", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").stat().st_size > 4e6
    assert (
        "cellseg-search export" in (tmp_path / "x.html").read_text()
        or "search.export" in (tmp_path / "x.html").read_text()
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_every_figure_without_an_error_or_a_request(page, tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=30000"),
            *(f"--window-size={width},20000", f"--user-data-dir={tmp_path / 'chrome'}", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"HOME": str(tmp_path)},
    )
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", done.stdout)[1].replace("&amp;", "&"))
    assert found["drawn"] == found["plots"] > 10
    assert found["requests"] == []
    assert found["wide"] <= max(width, 500), "no part is wider than the screen"
    assert found["sorted"] == sorted(found["sorted"], reverse=True) and len(found["sorted"]) == 3


@pytest.mark.slow
def test_a_report_of_300_trials_and_41_images_takes_seconds_and_a_few_megabytes(tmp_path, monkeypatch):
    store, validation = large_report.make_study(tmp_path), large_report.make_validation(tmp_path)
    assert len(validation.truths) == 41 and len(store.trials()) == 300
    monkeypatch.setattr(page_module, "validate", lambda *_: validation)
    began = time.process_time()  # of this process alone: others may keep the machine busy
    path = write_report(store)
    assert time.process_time() - began < 10
    assert path.stat().st_size < 15e6
    assert path.read_text(encoding="utf-8").count('class="picture"') > 30


def test_pictures_show_hits_misses_and_false_alarms(tmp_path):
    """With a trained model: see test_run.py. Here the drawing alone."""
    import numpy as np
    from drawn_cells import cells

    from search.views.html.predictions import Validation
    from search.views.html.quality import Quality
    from search.views.html.quality_section import quality_sections

    class Data:
        names = ("<b>one</b>",)
        class_names = ("a<b",)

        def __getitem__(self, index):
            from types import SimpleNamespace

            return SimpleNamespace(image_HWC=np.zeros((64, 64, 3), np.uint8))

    truth = cells((0, 0, 10, 1, 1), (0, 20, 10, 1, 1))
    found = cells((0, 0, 10, 1, 0.9), (40, 40, 10, 1, 0.9))
    validation = Validation(0, Data(), (0,), 1, [truth], [found], 4)
    sections = quality_sections(validation, Quality([found], [truth], ["a<b"]))
    (gallery,) = (block for section in sections for block in section.blocks if isinstance(block, Pictures))
    svg = gallery.pictures[0].svg
    assert svg.count('class="hit"') == 2 and svg.count('class="miss"') == 1 and svg.count('class="false"') == 1
    assert "a&lt;b 0.90" in svg and ">0.90</text>" in svg and "a<b" not in svg
    path = tmp_path / "page.html"
    write_page(path, "x", "y", sections)
    assert "<b>one" not in path.read_text()
