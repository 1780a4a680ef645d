"""A study's tables in Optuna's own tools."""

import json
from pathlib import Path

import optuna
import pytest
from fakes import finish, make_report, make_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from cellseg.errors import UserError
from search.ablation import load_ablation
from search.optuna_export import main
from search.space import parse_space
from search.storage.store import StudyStore
from search.views.optuna_study import optuna_study


@pytest.fixture
def store(tmp_path) -> StudyStore:
    """A search with every kind of trial: COMPLETE, PRUNED, INFEASIBLE, FAILED, and one that runs."""
    study = make_study(tmp_path, "cells", trials=10, epochs=3)
    study.store.write_study(study.store.study | {"space": study.experiment.to_json()})
    for number in range(5):
        assert study.propose().number == number
        if number != 2:
            study.report(number, make_report(1, 0.1 * (number + 1)))
    study.report(0, make_report(2, 0.5))
    study.report(0, make_report(3, 0.6, ending="epochs"))
    study.end(0, "epochs")
    finish(study, 1, "pruned", "at epoch 1")
    study.end(2, "out-of-memory", "80 GiB")
    study.end(3, "non-finite", "loss_mask in epoch 2")
    return StudyStore.open(study.store.folder)


def opened(file) -> optuna.Study:
    return optuna.load_study(study_name="cells", storage=JournalStorage(JournalFileBackend(str(file))))


def test_every_trial_says_how_it_ended(store):
    study = optuna_study(store)
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.state for trial in study.trials] == states
    assert [trial.value for trial in study.trials] == [0.6, 0.2, None, None, None]
    assert study.trials[0].intermediate_values == {1: 0.1, 2: 0.5, 3: 0.6}
    assert study.trials[2].constraints == {"memory": 1.0}
    assert study.trials[3].user_attrs == {"trial": 3, "reason": "non-finite: loss_mask in epoch 2"}
    assert [trial.params for trial in study.trials] == [json.loads(row.params) for row in store.trials()]
    assert (study.study_name, study.best_trial.number, study.metric_names) == ("cells", 0, ["segm/AP50"])
    assert all(trial.duration is not None for trial in study.trials[:4])


def test_the_file_opens_in_optuna_with_all_that_its_tools_need(store, tmp_path, capsys):
    file = tmp_path / "optuna.log"
    assert main(["--results", str(tmp_path), "--out", str(file)]) == 0
    assert "5 trials of study 'cells'" in capsys.readouterr().out
    study = opened(file)
    assert [trial.params for trial in study.trials] == [trial.params for trial in optuna_study(store).trials]
    assert set(study.best_params) <= {"optim.lr", "train.batch_size"}
    assert set(study.trials_dataframe()["state"]) == {"COMPLETE", "PRUNED", "FAIL", "RUNNING"}
    if optuna.visualization.is_available():  # it takes plotly, which Optuna does not require
        for plot in ("plot_optimization_history", "plot_intermediate_values", "plot_slice", "plot_parallel_coordinate"):
            assert getattr(optuna.visualization, plot)(study).data


def test_a_study_that_runs_is_exported_again_and_not_added_to(store, tmp_path):
    file = tmp_path / "optuna.log"
    for _ in range(2):
        assert main(["--results", str(tmp_path), "--study", "cells", "--out", str(file)]) == 0
    assert len(opened(file).trials) == 5
    assert {path.name for path in tmp_path.iterdir()} == {"cells", "optuna.log"}


def test_every_parameter_has_the_range_of_the_space(store):
    space = parse_space(store.study["space"], "space")
    for trial in optuna_study(store).trials:
        assert trial.distributions == {key: space.domains[key].distribution() for key in trial.params}


def test_an_ablation_is_refused(store):
    ablation = load_ablation(Path(__file__).parents[2] / "spaces/reports/schedulers_anchors.yaml")
    store.write_study(store.study | {"space": ablation.to_json()})
    with pytest.raises(UserError, match="study 'cells': must be a search, but got an ablation"):
        optuna_study(store)
