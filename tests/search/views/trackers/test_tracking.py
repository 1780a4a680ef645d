"""Trackers beside a search: what they are told, once, and that no search ends for them."""

import json
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import finish, make_report, make_study
from spacefiles import TINY_SPACE

from cellseg.errors import UserError
from search.ablation import load_ablation
from search.ablation.ablation import Ablation
from search.cluster.tracking import TrackerFeed
from search.cluster.trainable import REPORT
from search.run import main
from search.space import parse_space
from search.storage.store import StudyStore
from search.views.trackers import tracking
from search.views.trackers.tracking import Tracking, missing_trackers


class Book:
    """A tracker that notes what it is told, and knows it when it is opened again."""

    def __init__(self):
        self.epochs = defaultdict(list)
        self.complete = {}
        self.begun = []
        self.times = defaultdict(list)
        self.closed = 0

    def ended(self):
        return set(self.complete)

    def begin(self, row):
        self.begun.append(row.number)
        return max(self.epochs[row.number], default=0)

    def epoch(self, row, when):
        self.epochs[row.trial].append(row.epoch)
        self.times[row.trial].append(when)

    def end(self, row):
        assert row.number not in self.complete
        self.complete[row.number] = row.state

    def close(self):
        self.closed += 1


class Search:
    """A study whose events reach a tracker as Tune would tell them."""

    def __init__(self, folder, tracker, **settings):
        self.study = make_study(folder, "cells", **({"trials": 4, "epochs": 4} | settings))
        self.notes = []
        self.tracking = Tracking(self.study.store, ["tensorboard"], self.notes.append, make=lambda *_: tracker)
        self.feed = TrackerFeed(self.study, self.tracking)

    def report(self, number, epoch, value=0.5, ending=None):
        report = make_report(epoch, value, ending=ending)
        goes_on = self.study.report(number, report, "n")
        if ending is not None:
            finish(self.study, number, ending)
        trial = SimpleNamespace(config={"number": number})
        self.feed.on_trial_result(1, [], trial, {REPORT: json.dumps(report)})
        return goes_on

    def stop(self):
        self.study.interrupt()
        self.feed.tell()
        self.tracking.close()


def test_every_epoch_and_every_end_reach_the_tracker_once(tmp_path):
    book = Book()
    search = Search(tmp_path, book, asha=False)
    for number in range(3):
        search.study.propose()
        for epoch in range(1, 5):
            search.report(number, epoch, 0.1 * epoch, "epochs" if epoch == 4 and number != 2 else None)
            search.feed.on_step_end(1, [])
    search.stop()
    assert book.epochs == {0: [1, 2, 3, 4], 1: [1, 2, 3, 4], 2: [1, 2, 3, 4]}
    assert book.complete == {0: "COMPLETE", 1: "COMPLETE"}
    assert book.begun == [0, 1, 2]
    assert (book.closed, search.notes) == (1, [])


def test_a_repeated_epoch_and_one_after_the_interruption_are_left_out(tmp_path):
    book = Book()
    search = Search(tmp_path, book)
    search.study.propose()
    for epoch in (1, 2, 1, 2, 3):
        search.report(0, epoch)
    search.study.interrupt()
    search.report(0, 4)
    search.stop()
    assert book.epochs == {0: [1, 2, 3]}


def test_a_continued_study_doubles_no_point_and_adds_what_is_missing(tmp_path):
    book = Book()
    first = Search(tmp_path, book, asha=False)
    for _ in range(3):
        first.study.propose()
    first.report(0, 1)
    first.report(0, 2)
    first.report(1, 1, ending="epochs")
    first.stop()
    assert book.complete == {1: "COMPLETE"}
    book.epochs[0].remove(2)  # a kill came before the tracker wrote it
    again = Search(tmp_path, book, asha=False)
    assert again.study.propose().number == 0
    again.report(0, 2)  # its process tells again what it had told
    again.report(0, 3, ending="epochs")
    again.stop()
    assert book.epochs == {0: [1, 2, 3], 1: [1]}
    assert book.complete == {0: "COMPLETE", 1: "COMPLETE"}


def test_a_tracker_that_is_new_gets_all_that_the_tables_know(tmp_path):
    first = Search(tmp_path, Book(), asha=False)
    first.study.propose()
    first.study.propose()
    for epoch in (1, 2, 3):
        first.report(0, epoch, ending="epochs" if epoch == 3 else None)
    first.study.end(1, "bug", "KeyError")
    first.stop()
    book = Book()
    Search(tmp_path, book, asha=False).stop()
    assert book.epochs == {0: [1, 2, 3], 1: []}
    assert book.complete == {0: "COMPLETE", 1: "FAILED"}
    assert [later - before for before, later in zip(book.times[0], book.times[0][1:], strict=False)] == [0.5, 0.5]


@pytest.mark.parametrize("where", ["make", "begin", "epoch", "end", "close"])
def test_a_tracker_that_fails_is_one_warning_and_the_search_goes_on(tmp_path, where):
    book = Book()

    def fail(*_):
        raise OSError("no server\nsecond line")

    if where != "make":
        setattr(book, where, fail)
    study = make_study(tmp_path, "cells", asha=False)
    notes = []
    trackers = Tracking(study.store, ["tensorboard"], notes.append, make=lambda *_: fail() if where == "make" else book)
    feed = TrackerFeed(study, trackers)
    study.propose()
    for epoch in (1, 2):
        study.report(0, make_report(epoch, 0.5))
        result = {REPORT: json.dumps(make_report(epoch, 0.5))}
        feed.on_trial_result(1, [], SimpleNamespace(config={"number": 0}), result)
        feed.tell()
    study.end(0, "epochs")
    feed.tell()
    trackers.close()
    assert notes == ["warning: tensorboard failed, and the search goes on without it (OSError: no server)"]
    assert study.store.trial(0).state == "COMPLETE"


def test_a_tracker_that_hangs_holds_up_neither_the_search_nor_its_end_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.2)
    gate, book = threading.Event(), Book()
    book.epoch = lambda *_: gate.wait(30)
    search = Search(tmp_path, book, asha=False)
    search.study.propose()
    began = time.monotonic()
    for epoch in (1, 2, 3):
        search.report(0, epoch)
        search.feed.on_step_end(1, [])
    search.stop()
    assert time.monotonic() - began < 5
    assert search.notes == ["tensorboard is behind: what it lacks is added when the study is continued"]
    gate.set()


def test_a_study_in_an_object_store_says_that_it_is_not_tracked():
    store = SimpleNamespace(uri="s3://bucket/cells", trials=list)
    trackers = Tracking(store, ["tensorboard", "mlflow"], print)
    assert trackers.notes == ["not tracked, because results are in an object store: tensorboard, mlflow"]
    trackers.close()


def test_missing_packages_are_all_reported_with_what_to_install(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name != "tensorboardX" else object())
    assert [str(problem) for problem in missing_trackers(("tensorboard", "mlflow", "wandb", "mlflow"))] == [
        f"track: the package of {name} must be installed, but got no package {name}. "
        f"Run pip install 'cellseg-search[{name}]', or leave {name} out of track."
        for name in ("mlflow", "wandb")
    ]


def test_run_refuses_a_tracker_without_its_package_before_anything_is_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(TINY_SPACE)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main(["tiny.yaml", "--set", "track=[mlflow]"]) == 2
    assert capsys.readouterr().err.startswith("error: track: the package of mlflow must be installed")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


SPACE = {
    "metric": "segm/AP50",
    "direction": "maximize",
    "trials": 1,
    "epochs": 1,
    "space": {"optim.lr": {"low": 1e-4, "high": 1e-2}},
}


def test_track_is_no_part_of_what_makes_results_comparable():
    plain, tracked = parse_space(SPACE, "a"), parse_space(SPACE | {"track": ["mlflow", "wandb"]}, "a")
    assert plain.track == ("tensorboard",)
    assert tracked.track == ("mlflow", "wandb")
    assert plain.fingerprint == tracked.fingerprint
    assert "track" not in plain.to_json()
    assert parse_space(tracked.to_json(), "a") == tracked
    assert parse_space(SPACE | {"track": []}, "a").track == ()


def test_an_unknown_tracker_is_an_error():
    with pytest.raises(UserError, match="track"):
        parse_space(SPACE | {"track": ["tensorflow"]}, "a")


def test_ablations_are_tracked_too():
    path = Path(__file__).parents[4] / "spaces/reports/schedulers_anchors.yaml"
    plain, tracked = load_ablation(path), load_ablation(path, ["track=[]"])
    assert (plain.track, tracked.track) == (("tensorboard",), ())
    assert plain.fingerprint == tracked.fingerprint
    assert Ablation.from_json(tracked.to_json()).track == ()


def test_the_epochs_of_some_trials_are_read_alone(tmp_path):
    study = make_study(tmp_path, "cells", asha=False)
    for number in range(3):
        study.propose()
        study.report(number, make_report(1, 0.5))
    store = StudyStore.open(study.store.folder)
    assert set(store.epochs_by_trial([0, 2, 7])) == {0, 2}
    assert store.epochs_by_trial([0, 2])[2] == store.epochs(2)
    assert store.epochs_by_trial([]) == {}
