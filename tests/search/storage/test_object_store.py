"""Studies in an object store, on a real server of the S3 protocol that the tests start."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from fakes import empty_table, finish, make_report, make_space, study_of
from s3_server import lead_to, s3_server

from cellseg.checkpoint import has_checkpoint, open_checkpoint, save_checkpoint
from cellseg.errors import UserError
from cellseg.files import StorageError, storage_error
from cellseg.training.epoch_report import EpochReport
from search.storage import lease, remote, trial_table
from search.storage.checkpoint_copy import CheckpointCopy
from search.storage.find import find_study, list_studies
from search.storage.kept import choose_trial, kept_checkpoint
from search.storage.lock import study_lock
from search.storage.reader import open_study
from search.storage.remote import Remote, reading_folder, working_folder
from search.storage.store import StudyStore
from search.study.study import Study

pytest.importorskip("s3fs", reason="the s3 extra brings it")


@pytest.fixture(scope="module")
def endpoint():
    """The address of a server that knows one bucket."""
    with s3_server() as address:
        yield address


def forget_clients() -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(endpoint, tmp_path, monkeypatch):
    """The URI of a folder of results that nobody has used, in an environment that leads to the server."""
    uri = lead_to(endpoint, monkeypatch)
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    forget_clients()
    yield uri
    forget_clients()


def begin(uri: str, **settings) -> Study:
    """A study as the run command opens it: what is in the store, or a new one."""
    folder = working_folder(uri) / "study"
    from search.storage.fetch import fetch_study

    space = make_space(**settings)
    fetch_study(folder)
    new = {"name": "study", "metric": space.metric, "objective": None}
    store = StudyStore.open(folder) if StudyStore.exists(folder) else StudyStore.create(folder, new)
    return study_of("study", space, store)


def save(folder: Path, epoch: int, value: float, *, improved: bool = True) -> None:
    """Write the checkpoints of an epoch as training does."""
    import torch

    weights = {"w": torch.full((50,), float(epoch))}
    description = {
        "config": {},
        "class_names": ["cell"],
        "metric": "segm/AP50",
        "value": value,
        "epoch": epoch,
        "metrics": {"segm/AP50": value},
        "parameters": 50,
        "data_fingerprint": "",
    }
    if improved:
        save_checkpoint(folder / "best", weights, **description)
    twin = folder / "best" if improved else None
    save_checkpoint(folder / "last", weights, training={"step": epoch}, twin=twin, **description)


def train(study: Study, number: int, values: list[float]) -> None:
    """Report these epochs of a trial, with checkpoints copied as its process does."""
    copy = CheckpointCopy(Remote(study.store.uri), number, study.store.checkpoint_folder(number))
    for epoch, value in enumerate(values, start=1):
        save(study.store.checkpoint_folder(number), epoch, value)
        copy.start()
        copy.finish()
        study.report(number, make_report(epoch, value))
    copy.close()


def test_objects_are_put_read_listed_and_removed(s3, tmp_path):
    place = Remote(s3).below("study")
    assert (place.read("a/x"), place.exists("a/x"), place.sizes(), place.folders()) == (None, False, {}, [])
    (tmp_path / "x").write_bytes(b"first")
    place.put(tmp_path / "x", "a/x")
    place.put_bytes(b"second", "a/y")
    place.copy("a/y", "b/z")
    assert place.sizes() == {"a/x": 5, "a/y": 6, "b/z": 6}
    assert (place.sizes("a"), place.folders(), Remote(s3).folders()) == ({"a/x": 5, "a/y": 6}, ["a", "b"], ["study"])
    assert (place.exists("a"), place.exists("a/x")) == (False, True)
    place.get("a/x", tmp_path / "deep" / "x")
    assert (tmp_path / "deep" / "x").read_bytes() == b"first"
    place.put_bytes(b"third", "a/x")
    assert place.read("a/x") == b"third"
    place.remove(["a/x", "not there"])
    place.remove_folder("b")
    assert place.sizes() == {"a/y": 6}


def test_of_several_who_create_an_object_one_succeeds(s3):
    outcomes = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(Remote(s3).create(uuid.uuid4().bytes, "lock")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_a_study_is_killed_continued_elsewhere_reported_and_exported(s3, monkeypatch, capsys):
    monkeypatch.setattr(trial_table, "PART_ROWS", 1)
    study = begin(s3, keep=1, asha=False)
    for number, values in enumerate(([0.1, 0.5], [0.2, 0.3])):
        assert study.propose().number == number
        train(study, number, values)
        finish(study, number, "epochs")
    study.propose()
    train(study, 2, [0.4])
    shutil.rmtree(os.environ[remote.CACHE])  # the machine is gone

    again = begin(s3, keep=1, asha=False)
    assert [(row.state, row.epochs) for row in again.rows] == [("COMPLETE", 2), ("COMPLETE", 2), ("INTERRUPTED", 1)]
    proposal = again.propose()
    assert (proposal.number, proposal.epochs) == (2, 1)
    copy = CheckpointCopy(Remote(again.store.uri), 2, proposal.folder)
    copy.fetch()
    assert open_checkpoint(proposal.folder / "last").info.epoch == 1
    assert open_checkpoint(proposal.folder / "last").load_training() == {"step": 1}
    again.report(2, make_report(2, 0.45))
    finish(again, 2, "epochs")
    again.store.sweep_checkpoints(1)
    objects = Remote(s3).below("study").sizes()
    assert sorted(name for name in objects if name.startswith("checkpoints")) == [
        "checkpoints/t0000/best/checkpoint.json",
        "checkpoints/t0000/best/weights-0002.pt",
    ]
    assert "trials/part-00000.parquet" in objects

    shutil.rmtree(os.environ[remote.CACHE])
    store = find_study(reading_folder(s3), None)
    assert [row.number for row in store.best_trials()] == [0, 2, 1]
    assert store.epochs() == again.store.epochs()
    row = choose_trial(store, None)
    assert open_checkpoint(kept_checkpoint(store, row.number)).load_weights()["w"][0] == 2
    with pytest.raises(UserError, match=r"trial 1: its checkpoint must have been kept, but got those of \[0\] only"):
        choose_trial(store, 1)
    assert [study.name for study in list_studies(reading_folder(s3))] == ["study"]
    assert [trial["number"] for trial in open_study("study", s3).trial_rows] == [0, 1, 2]


def test_the_report_and_the_optuna_export_read_from_the_store(s3, tmp_path, capsys):
    from search import optuna_export, report

    space = make_space(asha=False)
    folder = working_folder(s3) / "study"
    new = {
        "name": "study",
        "metric": space.metric,
        "objective": None,
        "space": space.to_json(),
        "data_root": "d",
        "created": "now",
    }
    study = study_of("study", space, StudyStore.create(folder, new))
    study.propose()
    study.report(0, make_report(1, 0.5))
    study.end(0, "epochs")
    assert report.main(["--results", s3, "--markdown", str(tmp_path / "r.md")]) == 0
    assert "t0000" in (tmp_path / "r.md").read_text()
    assert optuna_export.main(["--results", s3, "--study", "study", "--out", str(tmp_path / "o.log")]) == 0
    assert "1 trial of study 'study'" in capsys.readouterr().out


def test_the_newest_state_arrives_and_states_in_between_may_be_left_out(s3, tmp_path, monkeypatch):
    folder, study = tmp_path / "t0003", Remote(s3)
    copy = CheckpointCopy(study, 3, folder)
    arrived, go_on = [], threading.Event()
    put_bytes = Remote.put_bytes

    def slow(self, content, name):
        go_on.wait(60)
        arrived.append((name, json.loads(content)["epoch"]))
        put_bytes(self, content, name)

    monkeypatch.setattr(Remote, "put_bytes", slow)
    for epoch in range(1, 6):
        save(folder, epoch, epoch / 10, improved=epoch != 5)
        copy.start()
    go_on.set()
    copy.finish()
    assert arrived[-2:] == [("best/checkpoint.json", 4), ("last/checkpoint.json", 5)]
    assert len(arrived) <= 4, "at most one copy was on its way while the others were made"
    names = study.sizes("checkpoints/t0003")
    assert sorted(name.removeprefix("checkpoints/t0003/") for name in names) == [
        "best/checkpoint.json",
        "best/weights-0004.pt",
        "last/checkpoint.json",
        "last/training-0005.pt",
        "last/weights-0005.pt",
    ]
    copy.close()
    assert not folder.exists()
    other = CheckpointCopy(study, 3, tmp_path / "other")
    other.fetch()
    assert open_checkpoint(tmp_path / "other" / "last").load_weights()["w"][0] == 5
    assert open_checkpoint(tmp_path / "other" / "best").load_weights()["w"][0] == 4


def test_a_copy_that_breaks_off_leaves_the_former_checkpoint(s3, tmp_path, monkeypatch):
    folder, study = tmp_path / "t0003", Remote(s3)
    copy = CheckpointCopy(study, 3, folder)
    save(folder, 1, 0.1)
    copy.start()
    copy.finish()
    put = Remote.put

    def broken(self, path, name):
        if "training" in name:
            raise StorageError("the line is cut")
        put(self, path, name)

    monkeypatch.setattr(Remote, "put", broken)
    save(folder, 2, 0.2)
    copy.start()
    with pytest.raises(StorageError, match="the line is cut"):
        copy.finish()
    monkeypatch.setattr(Remote, "put", put)
    copy.fetch()
    assert open_checkpoint(folder / "last").info.epoch == 1
    assert open_checkpoint(folder / "last").load_weights()["w"][0] == 1
    save(folder, 2, 0.2)
    copy.start()
    copy.finish()
    copy.fetch()
    assert open_checkpoint(folder / "last").info.epoch == 2


def test_a_trials_process_works_on_its_own_disk_and_another_goes_on_from_the_store(s3, tmp_path, monkeypatch):
    import ray
    import torch

    import cellseg.training.fit
    from search.cluster.trainable import DETAIL, ENDING, REPORT, CellTrainable

    study = begin(s3)
    proposal = study.propose()
    begun, stops_after = [], 2

    def fit(config, data, folder, device, on_step):
        begun.append(open_checkpoint(folder / "last").info.epoch if has_checkpoint(folder / "last") else 0)
        assert folder.is_relative_to(os.environ[remote.CACHE])
        for epoch in range(begun[-1] + 1, stops_after + 1):
            save(folder, epoch, epoch / 10)
            yield EpochReport(**make_report(epoch, epoch / 10, ending="epochs" if epoch == 3 else None))

    monkeypatch.setattr(ray._raylet, "setproctitle", lambda title: None)
    monkeypatch.setattr(CellTrainable, "_take_resources", lambda self: torch.device("cpu"))
    monkeypatch.setattr(cellseg.training.fit, "fit", fit)
    config = {"study": "study", "number": 0, "config": dict(proposal.config), "folder": str(proposal.folder)}
    config |= {"storage": study.store.uri, "epochs": 0}
    process = CellTrainable.__new__(CellTrainable)
    process.setup(config, data=empty_table())
    results = [process.step() for _ in range(2)]
    assert [json.loads(result[REPORT])["epoch"] for result in results] == [1, 2]
    process.cleanup()
    objects = {name.rpartition("/")[2] for name in Remote(study.store.uri).sizes("checkpoints/t0000")}
    assert objects == {"checkpoint.json", "weights-0002.pt", "training-0002.pt"}
    assert not any(Path(os.environ[remote.CACHE]).rglob("*.pt")), "its own disk is clean"

    monkeypatch.setenv(remote.CACHE, str(tmp_path / "another machine"))
    stops_after = 3
    process = CellTrainable.__new__(CellTrainable)
    process.setup(config | {"epochs": 1}, data=empty_table())
    results = [process.step() for _ in range(2)]
    assert [(json.loads(result[REPORT])["epoch"], result[ENDING]) for result in results] == [(2, None), (3, "epochs")]
    assert begun == [0, 2]
    assert open_checkpoint(study.store.fetch_checkpoint(0, "best")).info.epoch == 3, "its end waited for the copy"

    monkeypatch.setattr(Remote, "put", down)
    stops_after = 4
    process.reset_config(config | {"epochs": 3})
    ended = [process.step() for _ in range(3)][-1]
    assert (ended[ENDING], "must be reachable" in ended[DETAIL]) == ("storage", True)


def test_a_second_driver_is_told_who_holds_the_study(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    with study_lock(working_folder(s3), "study"):
        monkeypatch.setenv(remote.CACHE, str(tmp_path / "another machine"))
        monkeypatch.setattr(lease, "_machine", lambda: "another")
        with (
            pytest.warns(UserWarning, match="worked here"),
            pytest.raises(
                UserError, match=rf"one command at a time may work on it, but process {os.getpid()} on .* does"
            ),
            study_lock(working_folder(s3), "study"),
        ):
            pass
    with study_lock(working_folder(s3), "study"):
        pass


def test_a_dead_drivers_lease_is_free_after_it_was_watched(s3, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    dead = lease.Content("process 1 on elsewhere", "elsewhere", "token")
    assert Remote(s3).below("study").create(dead.text(7), lease.LEASE)
    with pytest.warns(UserWarning, match="process 1 on elsewhere worked here"), study_lock(working_folder(s3), "study"):
        pass
    assert Remote(s3).below("study").read(lease.LEASE) is None


def test_who_lost_the_lease_writes_nothing(s3):
    study = begin(s3)
    with study_lock(working_folder(s3), "study"):
        other = lease.Content("process 9 on elsewhere", "elsewhere", "token")
        Remote(s3).below("study").put_bytes(other.text(1), lease.LEASE)
        with pytest.raises(UserError, match="but process 9 on elsewhere took the study over"):
            study.propose()
        Remote(s3).below("study").remove([lease.LEASE])


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(UserError, match=r"^s3://no-such-bucket/x/study: the bucket must exist, but got .* Create it"):
        StudyStore.exists(working_folder("s3://no-such-bucket/x") / "study")


def test_credentials_that_are_not_there_are_asked_for(s3, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"credentials must be at hand, but got .*\. Set AWS_ACCESS_KEY_ID and"):
        Remote(s3).exists("x")


def test_a_package_that_is_not_installed_is_named(s3):
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match=r"a package must be installed, .* Run pip install 'cellseg-search\[s3\]'\.$"),
    ):
        patch.setitem(sys.modules, "s3fs", None)
        patch.delitem(importlib.import_module("fsspec.registry")._registry, "s3")
        Remote(s3)


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match=r"^ftpx://a/b: must be a folder, s3:// or gs://, but got 'ftpx://'"):
        Remote("ftpx://a/b")


def test_an_endpoint_that_is_down_is_a_failure_of_storage_that_one_flush_makes_good(s3, endpoint, monkeypatch):
    """In the middle of a search: what could not be written is written once the store is back."""
    study = begin(s3)
    study.propose()
    monkeypatch.setattr(Remote, "put", down)
    with pytest.raises(
        StorageError, match=r"must be reachable, but got .*\. Check the network and the endpoint"
    ) as caught:
        study.report(0, make_report(1, 0.5))
    assert storage_error(caught.value) is caught.value
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    study.flush()
    assert [epoch.epoch for epoch in study.store.epochs()] == [1]


def down(self, path, name):
    with self._told():
        raise ConnectionError("Could not connect to the endpoint URL")


def test_a_refused_connection_is_told_in_a_line(s3, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    forget_clients()
    with pytest.raises(StorageError, match=r"^s3://.*: must be reachable, but got .*\. Check the network") as caught:
        Remote(s3).exists("study.json")
    assert len(caught.value.problems) == 1


def test_a_folder_by_its_file_uri_works_as_a_store(tmp_path, monkeypatch):
    """For a disk that machines share: trials write to their own disks, and copies go there."""
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/shared"
    study = begin(uri, keep=1, asha=False)
    with study_lock(working_folder(uri), "study"):
        study = begin(uri, keep=1, asha=False)
        study.propose()
        train(study, 0, [0.5])
        finish(study, 0, "epochs")
    plain = StudyStore.open(tmp_path / "shared" / "study")
    assert plain.trials() == study.rows
    assert has_checkpoint(plain.checkpoint_folder(0) / "best")
    assert not study.store.checkpoint_folder(0).exists()


def test_a_plain_folder_stays_a_plain_folder(tmp_path):
    assert working_folder("results") == reading_folder("results") == Path("results")
    assert StudyStore.create(tmp_path / "s", {}).uri is None


DRIVER = """
import sys
import time
sys.path[:0] = sys.argv[2:]
from test_object_store import begin, make_report
study = begin(sys.argv[1], trials=100, asha=False)
with study.store.buffered(1.0):
    for number in range(100):
        study.propose()
        study.report(number, make_report(1, number / 100))
        study.end(number, "epochs")
        study.pause()
        time.sleep(0.2)
        print(study.num_finished, flush=True)
"""


@pytest.mark.timeout(400)
def test_a_driver_that_is_killed_leaves_a_study_that_goes_on(s3, tmp_path):
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    with subprocess.Popen([sys.executable, "-c", DRIVER, s3, *tests], stdout=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and int(driver.stdout.readline() or 30) < 15:
            pass
        driver.send_signal(signal.SIGKILL)
    again = begin(s3, trials=100, asha=False)
    assert 1 <= again.num_finished <= 100
    for row in again.rows:
        epochs = [epoch.epoch for epoch in again.store.epochs(row.number)]
        assert epochs[: row.epochs] == list(range(1, row.epochs + 1))
    assert again.propose().number <= len(again.rows)
