"""Trials on a real Ray, with a stand-in for the training."""

import os
import re
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import fakes
import pytest
import ray
from fakes import FakeTrainable, empty_table, make_study

import search.cluster.driver
from cellseg.errors import UserError
from cellseg.owners import owner_mark
from cellseg.training.epoch_report import TrainingError
from search.cluster.driver import run_study
from search.cluster.losses import MAX_LOSSES
from search.cluster.slots import num_slots, trial_resources
from search.cluster.tune_parts import Pauses, folder_name, name_of, placement
from search.sampling.ahead import Ahead
from search.storage.store import StudyStore
from search.storage.trial_logs import last_attempt, last_traceback

ONE_CPU = {"cpu": 1, "gpu": 0}

pytestmark = pytest.mark.usefixtures("small_ray")


@pytest.fixture(scope="module", autouse=True)
def _fake_training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.cluster.driver, "CellTrainable", FakeTrainable)
        yield


def scratch_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"search-{owner_mark()}-*"))


class Mixed:
    """A study whose trials have every fate there is, after it ran once."""

    def __init__(self, folder: Path):
        (folder / "notes").mkdir()
        self.study = make_study(folder, "mixed", trials=8)
        # Many former arrivals, better than trials 2 and 3 and worse than all others: who is stopped does not depend on
        # the order in which Ray's processes start.
        for number in range(1000, 1100):
            self.study.asha.replay(number, [(epoch, 0.05) for epoch in range(1, 5)])
        before, self.events = scratch_folders(), 0
        self.done = run_study(self.study, empty_table(), ONE_CPU, on_event=self._count)
        self.left_over = scratch_folders() - before
        self.folder = folder
        self.rows = {row.number: row for row in StudyStore.open(self.study.store.folder).trials()}

    def _count(self) -> None:
        self.events += 1

    def titles(self, number: int) -> list[str]:
        """The process title at each start of the trial."""
        return (self.folder / "notes" / f"t{number}").read_text().splitlines()

    def pids(self, number: int) -> list[int]:
        return [int(row.metrics["pid"]) for row in self.study.store.epochs(number)]


@pytest.fixture(scope="module")
def mixed(small_ray, tmp_path_factory, _fake_training) -> Mixed:
    return Mixed(tmp_path_factory.mktemp("mixed"))


@pytest.mark.timeout(300)
def test_the_study_reaches_its_target_whatever_happens_to_single_trials(mixed):
    assert mixed.done
    assert mixed.study.is_over
    assert sum(row.state in {"COMPLETE", "PRUNED", "INFEASIBLE"} for row in mixed.rows.values()) == 8
    assert not {row.state for row in mixed.rows.values()} & {"RUNNING", "INTERRUPTED"}
    assert mixed.events >= sum(row.epochs for row in mixed.rows.values())


def test_trials_end_as_they_should(mixed):
    states = {number: row.state for number, row in mixed.rows.items()}
    assert states[1] == states[4] == states[8] == "COMPLETE"
    assert states[5] == states[6] == "FAILED"
    assert states[7] == "INFEASIBLE"
    assert mixed.rows[7].reason == "out-of-memory: tried to allocate 80 GiB"
    assert mixed.rows[6].reason.strip().endswith("KeyError: 'a bug [/of ours]'")


def test_asha_stops_those_that_are_behind(mixed):
    assert mixed.rows[2].state == mixed.rows[3].state == "PRUNED"
    assert re.fullmatch(r"pruned: rank \d+ of \d+ at epoch 1, .*", mixed.rows[3].reason)
    assert (mixed.rows[3].epochs, mixed.rows[1].epochs) == (1, 4)


def test_processes_are_reused(mixed):
    pids = {number: set(mixed.pids(number)) for number in mixed.rows if mixed.rows[number].epochs}
    assert len(pids[1]) == 1
    deaths = 1 + MAX_LOSSES  # trials 4 and 5
    assert len(set.union(*pids.values())) <= 2 + deaths
    shared = [pid for pid in set.union(*pids.values()) if sum(pid in mine for mine in pids.values()) > 1]
    assert shared, "no process ran two trials"


def test_a_slow_teardown_loses_no_slot_and_no_trial(mixed):
    assert (mixed.folder / "notes" / "slow").exists()
    assert {row.number for row in mixed.rows.values() if row.state == "FAILED"} == {5, 6}
    assert mixed.rows[4].state == "COMPLETE", "it took the process that trial 3 was slow to leave"


def test_a_trial_whose_process_died_goes_on_in_another(mixed):
    assert len(mixed.titles(4)) == 2
    assert [row.epoch for row in mixed.study.store.epochs(4)] == [1, 2, 3, 4]
    assert len(set(mixed.pids(4))) == 2


def test_a_trial_whose_gpu_breaks_every_time_is_lost_and_says_how(mixed):
    assert len(mixed.titles(5)) == MAX_LOSSES
    assert mixed.rows[5].state == "FAILED"
    assert mixed.rows[5].reason == (
        "lost: its process died 3 times: CUDA error: an illegal memory access was encountered"
    )


def test_processes_are_called_like_their_trials(mixed):
    for number in (0, 2, 8):
        assert mixed.titles(number)[0] == f"ray::mixed/t{number:04d} epoch 1/4"


def test_every_trial_leaves_what_its_processes_printed(mixed):
    logs = {path.stem: path.read_text().splitlines() for path in (mixed.study.store.folder / "logs").iterdir()}
    assert set(logs) == {f"t{number:04d}" for number in mixed.rows}
    assert logs["t0001"][0].startswith("=== t0001 of mixed: started 20")
    assert last_attempt(logs["t0001"]).pid == mixed.pids(1)[-1]
    assert logs["t0001"][-1] == "epoch 4: value 0.1900, 0.5 s, ended as epochs"
    assert "printed by t0001" in logs["t0001"]
    assert not any("printed by" in line and "t0001" not in line for line in logs["t0001"])
    assert sum(line.startswith("===") for line in logs["t0004"]) == 2, "it was started again elsewhere"
    assert last_traceback(logs["t0006"])[-1] == "KeyError: 'a bug [/of ours]'"
    assert last_traceback(logs["t0005"])[-1].startswith("RuntimeError: CUDA error")


def test_only_kept_checkpoints_and_no_scratch_folder_stay(mixed):
    best = {f"t{row.number:04d}" for row in mixed.study.leaderboard[:2]}
    root = mixed.study.store.folder / "checkpoints"
    assert {path.name for path in root.iterdir()} == best
    assert {path.name for name in best for path in (root / name).iterdir()} == {"best"}
    assert not mixed.left_over


class Torn:
    """A study whose trials break where one ends and the next begins, and in their reports, after it ran once."""

    def __init__(self, folder: Path):
        self.study = make_study(folder, "torn", trials=8, epochs=5)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search.cluster.driver, "CellTrainable", make_torn(folder))
            self.done = run_study(self.study, empty_table(), ONE_CPU)
        self.rows = {row.number: row for row in StudyStore.open(self.study.store.folder).trials()}
        self.folder = folder


def make_torn(folder: Path) -> type[FakeTrainable]:
    """The class is local so that it travels to the workers by value: they need not import this module."""

    class TornTrainable(FakeTrainable):
        def reset_config(self, new_config):
            if new_config["number"] >= 7 and not (folder / "reset").exists():
                (folder / "reset").write_text(str(new_config["number"]))
                os._exit(1)
            return super().reset_config(new_config)

        def _fit(self, config):
            number = config["number"]
            try:
                if number == 6:
                    raise TrainingError("non-finite", "loss_mask in epoch 1")
                for epoch in (1, 2, 4, 5) if number == 3 else range(1, 6):
                    value = (0.9 if epoch < 3 else 0.0) if number == 3 else number / 20 + epoch / 100
                    yield fakes.make_report(epoch, value, ending="epochs" if epoch == 5 else None)
            finally:
                if number == 2 and not (folder / "died").exists():
                    (folder / "died").touch()
                    os._exit(1)

    return TornTrainable


@pytest.fixture(scope="module")
def torn(small_ray, tmp_path_factory) -> Torn:
    return Torn(tmp_path_factory.mktemp("torn"))


@pytest.mark.timeout(300)
def test_processes_that_die_between_two_trials_do_not_stop_the_search(torn):
    assert torn.done
    assert not {row.state for row in torn.rows.values()} & {"RUNNING", "INTERRUPTED"}
    assert sum(row.state != "FAILED" for row in torn.rows.values()) == 8


def test_a_teardown_that_kills_its_process_costs_no_trial(torn):
    assert (torn.folder / "died").exists()
    assert torn.rows[2].state in {"COMPLETE", "PRUNED"}
    assert not [row.reason for row in torn.rows.values() if row.reason.startswith("lost")]


def test_a_trial_whose_process_dies_in_the_reset_runs_in_another(torn):
    row = torn.rows[int((torn.folder / "reset").read_text())]
    assert row.state in {"COMPLETE", "PRUNED"}
    assert row.epochs >= 1


def test_a_loss_that_is_not_finite_fails_its_trial_with_the_reason(torn):
    assert (torn.rows[6].state, torn.rows[6].epochs) == ("FAILED", 0)
    assert torn.rows[6].reason == "non-finite: loss_mask in epoch 1"


def test_a_trial_that_skips_a_rung_is_not_judged_there_by_a_later_epoch(torn):
    assert torn.study.asha.rungs == (1, 3)
    assert [row.epoch for row in torn.study.store.epochs(3)] == [1, 2, 4, 5]
    assert torn.rows[3].state == "COMPLETE", "the worst of all in epoch 4, but that is no rung"
    assert 3 in torn.study.asha.rung(1)
    assert 3 not in torn.study.asha.rung(3)


@pytest.mark.timeout(300)
def test_a_slot_that_comes_free_finds_its_proposal_ready(tmp_path, monkeypatch):
    study = make_study(tmp_path, "steady", trials=6, asha=False)
    ready = {}
    take = Ahead.take

    def noted(self, number):
        ready[number] = number in self._made
        return take(self, number)

    monkeypatch.setattr(Ahead, "take", noted)
    assert run_study(study, empty_table(), ONE_CPU)
    assert ready == {0: False, 1: False} | dict.fromkeys(range(2, 6), True), "the first two are asked for at once"


class CountingStore:
    """Counts what :class:`search.cluster.tune_parts.Pauses` asks of a study's store."""

    def __init__(self):
        self.flushes = 0

    def pause(self) -> None:
        self.flushes += 1


def test_pauses_are_used_only_while_no_slot_waits(tmp_path, monkeypatch):
    study = make_study(tmp_path)
    made, store = [], CountingStore()
    monkeypatch.setattr(study, "store", store)
    monkeypatch.setattr(study.sampler, "prepare", lambda count: made.append(count))
    pauses = Pauses(study, SimpleNamespace(slots=3))
    pauses.on_step_end()
    assert (made, store.flushes) == ([3], 1), "nothing happened: there is time"
    pauses.on_trial_result()
    pauses.on_step_end()
    assert (made, store.flushes) == ([3], 2), "another result may wait already, but the tables are written"
    pauses.on_trial_result()
    pauses.on_trial_complete()
    pauses.on_step_end()
    assert (made, store.flushes) == ([3], 2), "a slot is free: its next trial comes first"
    pauses.on_step_end()
    assert (made, store.flushes) == ([3, 3], 3)


def test_what_tune_pickles_for_every_trial_does_not_hold_the_study():
    from ray import cloudpickle

    for name in (name_of, folder_name, placement):
        assert len(cloudpickle.dumps(name)) < 200, "a reference to the module's function"


@pytest.mark.timeout(300)
def test_a_cause_that_all_trials_share_ends_the_search_at_once(tmp_path):
    study = make_study(tmp_path, "broken", trials=50)
    before = scratch_folders()
    with pytest.raises(UserError, match="but 3 trials in a row ended as 'bug': ValueError: the same for every trial"):
        run_study(study, empty_table(), ONE_CPU)
    rows = StudyStore.open(study.store.folder).trials()
    assert len(rows) <= 5
    assert not any(row.state == "RUNNING" for row in rows)
    assert scratch_folders() == before


@pytest.mark.timeout(300)
@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_search_cleanly_and_the_next_run_goes_on(tmp_path, sent):
    study = make_study(tmp_path, "steady", trials=4, asha=False)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    kills = iter([os.kill])

    def interrupt_once() -> None:
        if sum(row.epochs for row in study.rows) == 3 and (kill := next(kills, None)):
            kill(os.getpid(), sent)

    assert not run_study(study, empty_table(), ONE_CPU, on_event=interrupt_once)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    rows = StudyStore.open(study.store.folder).trials()
    assert {row.state for row in rows} == {"INTERRUPTED"}
    configs = {row.number: row.config for row in rows}

    study = make_study(tmp_path, "steady", trials=4, asha=False)
    assert run_study(study, empty_table(), ONE_CPU)
    rows = StudyStore.open(study.store.folder).trials()
    assert [(row.number, row.state, row.epochs) for row in rows] == [(n, "COMPLETE", 4) for n in range(4)]
    assert configs.items() <= {row.number: row.config for row in rows}.items()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("limits", [{"target": 0.11}, pytest.param({"hours": 0.2 / 3600}, marks=pytest.mark.slow)])
def test_a_limit_ends_the_search_without_an_error_and_with_a_higher_one_it_goes_on(tmp_path, limits):
    study = make_study(tmp_path, "steady", trials=4, asha=False, limits=limits)
    assert run_study(study, empty_table(), ONE_CPU)
    assert study.limits.reached.setting == f"limits.{next(iter(limits))}"
    rows = StudyStore.open(study.store.folder).trials()
    assert "INTERRUPTED" in {row.state for row in rows}
    assert not {row.state for row in rows} & {"RUNNING", "PRUNED", "FAILED"}

    study = make_study(tmp_path, "steady", trials=4, asha=False, limits={"hours": 1})
    assert run_study(study, empty_table(), ONE_CPU)
    rows = StudyStore.open(study.store.folder).trials()
    assert [(row.number, row.state, row.epochs) for row in rows] == [(n, "COMPLETE", 4) for n in range(4)]


@pytest.mark.timeout(300)
def test_a_table_that_cannot_be_written_is_the_users_problem_and_not_a_trials(tmp_path, monkeypatch):
    study = make_study(tmp_path, "steady", asha=False)
    problem = UserError("trials.parquet: must be writable, but got 'No space left on device'. Check space and rights.")
    real = study.store.add_epoch

    def full_disk(row) -> None:
        if row.epoch == 2:
            raise problem
        real(row)

    monkeypatch.setattr(study.store, "add_epoch", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        run_study(study, empty_table(), ONE_CPU)


def test_a_trial_takes_one_cpu_where_there_is_no_gpu():
    assert trial_resources(None) == {"cpu": 1, "gpu": 0}
    assert trial_resources({"cpu": 2, "gpu": 0}) == {"cpu": 2, "gpu": 0}


@pytest.mark.parametrize(
    ("machines", "cpu", "slots"),
    [
        ([(16, 1)], 16, 1),
        ([(64, 1)], 17, 1),  # 16 processes load, one trains
        ([(64, 8)], 8, 8),
        ([(30, 4)], 7, 4),
        ([(2, 4)], 1, 2),
        ([(64, 8), (8, 2)], 4, 10),  # the smallest share, or the small machine's GPUs would idle
        ([(64, 8), (128, 0), (0, 1)], 8, 8),  # machines that take no such trial do not count
    ],
)
def test_a_trial_on_a_gpu_takes_its_share_of_the_cpus(monkeypatch, machines, cpu, slots):
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in machines]
    dead = {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, dead])
    resources = trial_resources(None)
    assert resources == {"cpu": cpu, "gpu": 1}
    assert num_slots(resources) == slots
    assert trial_resources({"cpu": 1, "gpu": 1}) == {"cpu": 1, "gpu": 1}  # what a space gives is taken
    assert trial_resources({"cpu": None, "gpu": 1}) == resources
    assert trial_resources({"cpu": None, "gpu": 0.5}) == {"cpu": max(cpu // 2, 1), "gpu": 0.5}
    assert trial_resources({"cpu": None, "gpu": 0}) == {"cpu": 1, "gpu": 0}


@pytest.mark.parametrize("wanted", [{"cpu": 3, "gpu": 0}, {"cpu": 1, "gpu": 1}])
def test_a_trial_larger_than_any_machine_is_refused_with_the_largest(wanted):
    with pytest.raises(UserError, match=r"must fit on one machine, but got cpu=.*the largest has 2 CPUs and 0 GPUs"):
        trial_resources(wanted)


@pytest.mark.parametrize(("resources", "slots"), [(ONE_CPU, 2), ({"cpu": 2, "gpu": 0}, 1), ({"cpu": 0.5, "gpu": 0}, 4)])
def test_slots_are_what_the_machines_hold(resources, slots):
    assert num_slots(resources) == slots


@pytest.mark.parametrize(
    ("gpu", "slots"), [(0.2, 10), (0.6, 2), (0.5, 4), (1 / 3, 6), (0.3, 6), (1, 2), (0.1, 16), (0, 16)]
)
def test_shares_of_gpus_are_counted_on_each_gpu(monkeypatch, gpu, slots):
    node = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node, {"Alive": False, "Resources": {"CPU": 9}}])
    assert num_slots({"cpu": 1, "gpu": gpu}) == slots


def test_shares_of_cpus_are_counted_too(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    assert num_slots({"cpu": 0.1, "gpu": 0}) == 10


def test_fakes_report_what_fit_reports():
    from dataclasses import fields

    from cellseg.training.epoch_report import EpochReport

    assert set(fakes.make_report(1, 0.5)) == {field.name for field in fields(EpochReport)}
