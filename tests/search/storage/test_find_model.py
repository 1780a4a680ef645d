"""What a word means as a model: a study, a checkpoint, or nothing."""

import pytest
from fakes import make_report, make_study

from cellseg.errors import UserError
from search.storage.find_model import find_model


@pytest.fixture
def results(tmp_path):
    """A study whose two trials have checkpoints; the second is best."""
    study = make_study(tmp_path)
    for value in (0.25, 0.75):
        number = study.propose().number
        study.report(number, make_report(1, value))
        best = study.store.checkpoint_folder(number) / "best"
        best.mkdir(parents=True)
        (best / "checkpoint.json").write_text("{}")
    study.store.flush()
    return tmp_path


def test_a_study_means_its_best_trial_by_name_or_folder(results):
    folder = results / "study" / "checkpoints"
    for word in ("study", str(results / "study")):
        found, line = find_model(word, None, results)
        assert found == folder / "t0001" / "best"
        assert line == "study study, trial t0001, validation segm/AP50 0.7500"
    assert find_model("study", 0, results)[0] == folder / "t0000" / "best"


def test_a_checkpoint_means_itself_also_as_the_folder_of_a_run(results):
    run = results / "study" / "checkpoints" / "t0000"
    assert find_model(str(run), None, results) == (run / "best", None)
    assert find_model(str(run / "best"), None, results) == (run / "best", None)
    with pytest.raises(UserError, match="--trial: needs a study"):
        find_model(str(run), 1, results)


def test_what_is_no_model_is_said_with_the_studies_there(results, tmp_path):
    with pytest.raises(UserError, match=r"nothing of the kind\. Studies there: study\."):
        find_model("stduy", None, results)
    with pytest.raises(UserError, match="There is no study"):
        find_model("study", None, tmp_path / "empty")
