"""Fixtures of the search's tests."""

import os
from pathlib import Path

import pytest
from searches import Workplace
from spacefiles import TINY_SPACE


@pytest.fixture
def workplace(tmp_path) -> Workplace:
    """A space of a model too small to learn much, and nothing else."""
    (tmp_path / "tiny cells.yaml").write_text(TINY_SPACE)
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> Workplace:
    """A finished search: the command ran once, into the relative folder ``results``. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "tiny cells.yaml").write_text(TINY_SPACE)
    place = Workplace(folder)
    done = place.run("search.run", "tiny cells.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    place.output = done.stdout
    return place


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Packed data go to a folder of the test run, in subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(autouse=True)
def _own_authentication():
    """A test that joins a cluster with a token leaves the process as it was."""
    former = os.environ.get("RAY_AUTH_MODE")
    yield
    if os.environ.get("RAY_AUTH_MODE") != former:
        from tests.ray_authentication import set_mode

        set_mode(former)


@pytest.fixture(scope="session")
def small_ray(tmp_path_factory):
    """One small Ray for all tests that need one; starting it takes seconds."""
    import ray

    from tests.ray_authentication import set_mode

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_TOKEN", raising=False)  # of the cluster of other tests
        set_mode(None)
        for name, value in {
            "RAY_CHDIR_TO_TRIAL_DIR": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "RAY_AIR_NEW_OUTPUT": "0",
            "RAY_worker_niceness": "0",  # else a busy machine lets trials wait for everything beside the tests
        }.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # workers import the stand-ins
        # A raylet dies if its dashboard's agent takes 15 s to start, as on a busy machine it does; without the
        # dashboard's packages, which nothing here needs, it takes a fraction.
        patch.setattr(ray._private.utils, "get_dashboard_dependency_error", lambda: ImportError("not wanted"))
        ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
