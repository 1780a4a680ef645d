"""A machine that turns out to be unfit while it is the only one stops the search, and costs no trial."""

import pytest
from fakes import FakeTrainable, empty_table, make_study
from ray import tune

import search.cluster.driver
from cellseg.errors import UserError
from search.cluster.driver import run_study
from search.storage.store import StudyStore

ONE_CPU = {"cpu": 1, "gpu": 0}

pytestmark = [pytest.mark.usefixtures("small_ray"), pytest.mark.timeout(300)]


class Refuses(tune.Callback):
    """Finds a machine unfit after so many reports."""

    def __init__(self, reports: int):
        self.left = reports

    def on_trial_result(self, *_, **__):
        self.left -= 1

    def on_step_end(self, *_, **__):
        if self.left <= 0:
            raise UserError("node 7: must be fit, but got none.")


def run(study, **arguments) -> None:
    run_study(study, empty_table(), ONE_CPU, **arguments)


def states(study) -> list[str]:
    return [row.state for row in StudyStore.open(study.store.folder).trials()]


def test_a_callback_that_finds_a_machine_unfit_stops_the_search_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(search.cluster.driver, "CellTrainable", FakeTrainable)
    study = make_study(tmp_path, "steady", trials=4)
    with pytest.raises(UserError, match=r"^node 7: must be fit, but got none\.$"):
        run(study, callbacks=[Refuses(2)])
    former = states(study)
    assert "INTERRUPTED" in former
    assert not {"RUNNING", "FAILED"} & set(former)
    study = make_study(tmp_path, "steady", trials=4)
    run(study)
    assert len([state for state in states(study) if state in {"COMPLETE", "PRUNED"}]) == 4


def test_a_trials_process_on_an_unfit_machine_stops_the_search(tmp_path, monkeypatch):
    class OnTheMoon(FakeTrainable):
        def _unfit_node(self):
            return "node moon: must see the folder of results."

    monkeypatch.setattr(search.cluster.driver, "CellTrainable", OnTheMoon)
    study = make_study(tmp_path, "steady", trials=4)
    with pytest.raises(UserError, match=r"^node moon: must see the folder of results\.$"):
        run(study)
    assert set(states(study)) == {"INTERRUPTED"}
