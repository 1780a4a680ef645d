"""Start configs from earlier studies: what is taken, what is left, and that the choice stays."""

import json
import shutil
from pathlib import Path

import pytest
from fakes import make_report, make_space, make_study
from spacefiles import TINY_SPACE

from cellseg.cli import EXIT_OK, EXIT_USER_ERROR
from cellseg.data.synthetic import generate_dataset
from cellseg.errors import UserError
from search.prepare import open_study, prepare_data
from search.run import main
from search.space import Space, load_space, parse_space
from search.storage.remote import CACHE, working_folder
from search.storage.store import StudyStore
from search.study.earlier import with_starts

LR = {"low": 1e-4, "high": 1e-2, "log": True}
BATCH = {"choices": [1, 2, 4]}


def train(folder: Path, name: str, values: list[float], **settings) -> None:
    """A study of so many trials, each trained to its end with this value."""
    study = make_study(folder, name, trials=len(values) + 1, asha=False, **settings)
    for value in values:
        proposal = study.propose()
        for epoch in range(1, 5):
            study.report(proposal.number, make_report(epoch, value))
        study.end(proposal.number, "epochs")


def params_of(folder: Path, name: str) -> list[dict]:
    return [json.loads(row.params) for row in StudyStore.open(folder / name).trials()]


def taken(space: Space) -> list[dict]:
    return [dict(config) for config in space.starts]


def start(folder: Path, **settings) -> tuple[Space, list[str]]:
    space, lines = with_starts(make_space(**settings), "new", folder)
    assert isinstance(space, Space)
    return space, lines


@pytest.fixture
def results(tmp_path):
    train(tmp_path, "old", [0.3, 0.7, 0.1, 0.5])
    return tmp_path


def test_the_best_configs_of_an_earlier_study_come_first_in_the_order_of_their_values(results):
    space, lines = start(results, start_from={"study": "old", "top": 2})
    old = params_of(results, "old")
    assert taken(space) == [old[1], old[3]]
    assert lines == ["start_from: study 'old': 2 configs of its 4 ended trials: t0001 (0.7000), t0003 (0.5000)"]
    assert "first: 2 configs of study old" in space.describe()


def test_five_are_taken_where_no_number_is_given_or_as_many_as_there_are(results):
    space, _ = start(results, start_from=[{"study": "old"}])
    assert len(space.starts) == 4
    train(results, "more", [0.1 * number for number in range(8)], seed=1)
    space, _ = start(results, start_from=[{"study": "more"}])
    assert len(space.starts) == 5


def test_a_loss_is_best_where_it_is_lowest(tmp_path):
    folder = tmp_path
    study = make_study(folder, "old", trials=4, asha=False, metric="loss/validation", direction="minimize")
    for value in (0.3, 0.1, 0.2):
        proposal = study.propose()
        study.report(proposal.number, make_report(1, value, metric="loss/validation"))
        study.end(proposal.number, "epochs")
    space, lines = start(folder, start_from={"study": "old", "top": 1})
    assert taken(space) == [json.loads(study.rows[1].params)]
    assert "t0001 (0.1000)" in lines[0]


def test_plain_configs_and_several_studies_go_together_without_repeats(results):
    train(results, "other", [0.4, 0.6], seed=5)
    old, other = params_of(results, "old"), params_of(results, "other")
    space, lines = start(
        results, start_from=[{"study": "old", "top": 2}, old[1], {"study": str(results / "other"), "top": 9}]
    )
    assert taken(space) == [old[1], old[3], old[0], other[1], other[0]]
    assert len(lines) == 2


def test_values_that_do_not_fit_are_named_and_drawn_and_none_is_clamped(results):
    old = params_of(results, "old")
    settings = {"space": {"optim.lr": {"low": 1e-9, "high": 1e-8, "log": True}, "train.batch_size": BATCH}}
    space, lines = start(results, start_from={"study": "old", "top": 1}, **settings)
    assert taken(space) == [{"train.batch_size": old[1]["train.batch_size"]}]
    assert lines[1] == (
        f"start_from: study 'old': not taken: optim.lr={old[1]['optim.lr']} of t0001 "
        "(outside its range here, drawn instead)"
    )
    settings = {"space": {"optim.lr": LR, "model.weights": "none"}}
    space, lines = start(results, start_from={"study": "old", "top": 1}, **settings)
    assert taken(space) == [{"optim.lr": old[1]["optim.lr"]}]
    assert lines[1] == "start_from: study 'old': not taken: train.batch_size (not sampled here)"


def test_what_the_earlier_study_had_fixed_or_by_default_is_taken_too(results):
    space, _ = start(
        results,
        start_from={"study": "old", "top": 1},
        space={"optim.lr": LR, "optim.weight_decay": {"low": 1e-6, "high": 1.0, "log": True}},
    )
    assert set(space.starts[0]) == {"optim.lr", "optim.weight_decay"}


def test_conditional_values_are_taken_where_their_condition_is(tmp_path):
    switched = {
        "optim.lr": LR,
        "augment.preset": {"choices": ["flips", "color", "full"]},
        "augment.strength": {"low": 0.1, "high": 0.9, "when": {"augment.preset": ["color", "full"]}},
        "model.weights": "none",
    }
    train(tmp_path, "old", [0.1 * number for number in range(9)], space=switched, seed=2)
    old = params_of(tmp_path, "old")
    space, lines = start(tmp_path, start_from={"study": "old", "top": 9}, space=switched)
    assert taken(space) == list(reversed(old)) and len(lines) == 1
    without = switched | {"augment.preset": {"choices": ["flips", "full"]}}
    without["augment.strength"] = switched["augment.strength"] | {"when": {"augment.preset": "full"}}
    space, lines = start(tmp_path, start_from={"study": "old", "top": 9}, space=without)
    for params, config in zip(reversed(old), space.starts, strict=True):
        gone = {"augment.preset", "augment.strength"} if params["augment.preset"] == "color" else set()
        assert config == {key: value for key, value in params.items() if key not in gone}
    assert "augment.preset=color of t0" in lines[1]
    again = parse_space(space.to_json(), "study.json")
    assert again == space, "what was taken is a legal part of a study's description"


def test_a_continued_study_needs_the_earlier_one_no_more(results):
    asked = {"study": "old", "top": 2}
    first, _ = start(results, start_from=asked)
    shutil.rmtree(results / "old")
    again, lines = with_starts(make_space(start_from=[asked]), "new", results, first.to_json())
    assert (taken(again), lines) == (taken(first), [])
    with pytest.raises(UserError):
        with_starts(make_space(start_from=[asked]), "new", results)


def test_better_trials_of_the_earlier_study_do_not_change_what_was_taken(results):
    first, _ = start(results, start_from={"study": "old", "top": 2})
    train(results, "old", [])
    study = make_study(results, "old", trials=9, asha=False)
    proposal = study.propose()
    study.report(proposal.number, make_report(1, 0.99))
    study.end(proposal.number, "epochs")
    again, _ = with_starts(make_space(start_from={"study": "old", "top": 2}), "new", results, first.to_json())
    assert taken(again) == taken(first)
    fresh, _ = start(results, start_from={"study": "old", "top": 2})
    assert taken(fresh) != taken(first)


def test_a_study_in_an_object_store_is_read_from_there_and_the_local_copy_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/store"
    results = working_folder(uri)
    train(results, "old", [0.3, 0.7])
    at_work = results / "old" / "checkpoints" / "t0002" / "last" / "at-work"
    at_work.parent.mkdir(parents=True)
    at_work.touch()
    for name in ("old", f"{uri}/old"):
        space, _ = start(results, start_from={"study": name, "top": 1})
        assert taken(space) == [params_of(results, "old")[1]]
    assert at_work.exists()
    with pytest.raises(UserError, match=rf"got 'odl', which is not in {uri}\. Did you mean 'old'"):
        start(results, start_from={"study": "odl"})


def test_a_study_that_comes_later_is_taken_when_it_is_named(results):
    first, _ = start(results, start_from={"study": "old", "top": 1})
    train(results, "later", [0.9], seed=7)
    wanted = make_space(start_from=[{"study": "old", "top": 1}, {"study": "later"}])
    again, lines = with_starts(wanted, "new", results, first.to_json())
    assert taken(again) == [*taken(first), *params_of(results, "later")]
    assert len(lines) == 1 and "'later'" in lines[0]


def test_the_trials_of_a_study_begin_with_what_was_taken(results):
    space, _ = start(results, start_from=[{"train.batch_size": 2}, {"study": "old", "top": 2}])
    study = make_study(results, "new", **space.to_json())
    proposed = [study.propose().config for _ in range(3)]
    old = params_of(results, "old")
    assert proposed[0]["train.batch_size"] == 2
    assert [config["optim.lr"] for config in proposed[1:]] == [old[1]["optim.lr"], old[3]["optim.lr"]]


def test_a_study_that_is_not_there_names_the_nearest_or_all(results):
    with pytest.raises(UserError, match=r"start_from: must name a study, but got 'odl', .* Did you mean 'old'\?"):
        start(results, start_from={"study": "odl"})
    with pytest.raises(UserError, match=r"got 'zzzzzz', which is not in .*\. The studies there are old\."):
        start(results, start_from={"study": "zzzzzz"})
    with pytest.raises(UserError, match=r"There are no other studies\."):
        start(results / "empty", start_from={"study": "old"})
    with pytest.raises(UserError, match="must name an earlier study, but got 'new', which is this one"):
        start(results, start_from={"study": "new"})


def test_a_study_without_ended_trials_or_common_keys_has_nothing_to_give(results):
    study = make_study(results, "begun", trials=3)
    study.propose()
    with pytest.raises(UserError, match=r"'begun' must have trials that ended with a value, but got none of 1, 1 of"):
        start(results, start_from={"study": "begun"})
    far = {"optim.lr": {"low": 1e-9, "high": 1e-8}, "model.weights": "none"}
    with pytest.raises(UserError, match=r"'old' must have configs with values of this space's keys, but got none"):
        start(results, start_from={"study": "old"}, space=far)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"study": "old", "tpo": 3}, r"start_from\[0\]: tpo: must be a setting.*Did you mean 'top'"),
        ({"study": "old", "top": 0}, r"start_from\.0\.top|start_from\[0\].*top"),
        ({"study": 3}, r"start_from\[0\].*study: must be a valid string"),
        ([{"study": "old"}, {"study": "old"}], "earlier studies must differ"),
        ("old", r"must be a list of configs, but got str. Write \{study: NAME, top: 5\}"),
    ],
)
def test_entries_that_are_wrong_are_the_users_error(entry, message):
    with pytest.raises(UserError, match=message):
        make_space(start_from=entry)


def test_the_choice_is_written_into_the_study_and_needs_no_earlier_one_then(results, tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "cells"
    generate_dataset(root, train=6, test=1, seed=0, size=64)
    wanted = make_space(start_from=[{"study": "old", "top": 2}])
    data = prepare_data(wanted, root, results)
    old = params_of(results, "old")
    first = open_study(wanted, "new", results, data)
    assert json.loads(first.store.trial(first.propose().number).params) == old[1]
    assert first.store.study["space"]["start_from"] == [{"study": "old", "top": 2, "taken": [old[1], old[3]]}]
    first.interrupt()
    shutil.rmtree(results / "old")
    notes: list[str] = []
    again = open_study(make_space(start_from=[{"study": "old", "top": 2}]), "new", results, data, notes.append)
    assert again.propose().number == 0, "the one that was interrupted"
    assert json.loads(again.store.trial(again.propose().number).params) == old[3]
    assert notes == []


def test_a_dry_run_says_what_a_study_would_take_and_what_it_took(results, tmp_path, capsys):
    path = tmp_path / "new.yaml"
    path.write_text(TINY_SPACE.replace("low: 1e-3", "low: 1e-4") + "start_from: {study: old, top: 2}\n")
    arguments = [str(path), "--dry-run", "--results", str(results)]
    assert main(arguments) == EXIT_OK
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "start_from: study 'old': 2 configs of its 4 ended trials: t0001 (0.7000), t0003 (0.5000)"
    assert told[1] == "start_from: study 'old': not taken: train.batch_size (not sampled here)"
    assert "first: 2 configs of study old" in told
    shutil.rmtree(results / "old")
    assert main(arguments) == EXIT_USER_ERROR
    assert "start_from: must name a study, but got 'old'" in capsys.readouterr().err
    assert not (results / "new").exists()


def test_a_fixed_key_leaves_the_study_alone(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "metric: segm/AP50\ndirection: maximize\ntrials: 2\nepochs: 4\n"
        "space: {optim.lr: {low: 1e-4, high: 1e-2}, train.batch_size: {choices: [1, 2]}, model.weights: none}\n"
        "start_from: [{optim.lr: 1e-3, train.batch_size: 1}, {study: old, top: 3}]\n"
    )
    space = load_space(path, ["optim.lr=1e-3"])
    assert space.start_from == ({"train.batch_size": 1},)
    assert [(entry.study, entry.top) for entry in space.start_studies] == [("old", 3)]
