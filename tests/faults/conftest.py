"""Fixtures of the tests of faults: one cluster and one process that starts commands, for all of them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "search"))  # fakes and spacefiles, if no test there is collected

from searches import Workplace
from spacefiles import TINY_SPACE

from tests.faults.harness import Bench, Commands, tables
from tests.faults.machines import Machines, machines


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory) -> Iterator[None]:
    """Packed data go to a folder of the test run, in subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def faults_cluster(_own_cache) -> Iterator[tuple[Machines, Commands]]:
    with machines() as cluster:
        commands = Commands(cluster)  # imports while Ray starts
        cluster.add(num_cpus=4)
        yield cluster, commands
        commands.close()


@pytest.fixture(scope="session")
def undisturbed(faults_cluster, tmp_path_factory) -> Bench:
    """The study as it ends with one slot and no faults. Tests leave it as it is."""
    bench = Bench(tmp_path_factory.mktemp("undisturbed"), *faults_cluster)
    bench.finish()
    return bench


@pytest.fixture(scope="session")
def expected(undisturbed):
    """Its tables."""
    return tables(undisturbed.store())


@pytest.fixture
def workplace(tmp_path) -> Workplace:
    """A folder with a space of a model too small to learn much."""
    (tmp_path / "tiny cells.yaml").write_text(TINY_SPACE)
    return Workplace(tmp_path)


@pytest.fixture
def make_bench(faults_cluster, tmp_path) -> Callable[..., Bench]:
    """A new folder with the same study."""
    return lambda **what: Bench(tmp_path, *faults_cluster, **what)
