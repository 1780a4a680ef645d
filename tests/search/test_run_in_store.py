"""The command with its results in an object store, as people run it."""

import pytest
from s3_server import lead_to, s3_server

from cellseg.checkpoint import open_checkpoint
from search.storage import remote
from search.storage.find import find_study
from search.storage.kept import choose_trial, kept_checkpoint
from search.storage.remote import Remote, reading_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_a_search_is_run_reported_and_continued_from_another_machine(workplace, tmp_path, monkeypatch):
    with s3_server() as address:
        uri = lead_to(address, monkeypatch)
        monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
        done = workplace.run("search.run", "tiny cells.yaml", "--results", uri, "--trials", "1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"Results: {uri}/tiny cells" in done.stdout
        monkeypatch.setenv(remote.CACHE, str(tmp_path / "another machine"))
        done = workplace.run("search.run", "tiny cells.yaml", "--results", uri, "--trials", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].endswith(f"--study 'tiny cells' --results {uri}")
        store = find_study(reading_folder(uri), None)
        assert [row.number for row in store.trials()] == [0, 1]
        best = choose_trial(store, None)
        info = open_checkpoint(kept_checkpoint(store, best.number)).info
        assert (info.value, info.epoch) == (best.metric, best.best_epoch)
        kept = {name.rpartition("/")[0] for name in Remote(uri).below("tiny cells").sizes("checkpoints")}
        assert kept == {f"checkpoints/t{best.number:04d}/best"}
        shown = workplace.run("search.report", "--results", uri)
        assert shown.returncode == 0 and "t0001" in shown.stdout
        logs = workplace.run("search.commands.logs", "--trial", "1", "--results", uri)
        assert "epoch 1: value" in logs.stdout
