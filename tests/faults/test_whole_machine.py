"""The command with a Ray of its own and trials that train, and what may happen to both."""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from searches import Search, Workplace
from spacefiles import TINY_SPACE

from search.storage.store import StudyStore
from tests.faults.harness import scratch_folders, tables, titles

# Each starts Ray twice and trains.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SETTINGS = ("--epochs", "4", "--max-slots", "1")


def store_of(place) -> StudyStore:
    return StudyStore.open(place.folder / "results" / "tiny cells")


def again(place) -> None:
    done = place.run("search.run", "tiny cells.yaml", *SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def undisturbed_training(tmp_path_factory):
    """The tables of the study without faults."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"))
    (place.folder / "tiny cells.yaml").write_text(TINY_SPACE)
    again(place)
    return tables(store_of(place))


def kill(search: Search) -> None:
    search.process.kill()


def kill_part(name: str) -> Callable[[Search], None]:
    def kill_it(search: Search) -> None:
        for pid, title in titles():
            if f"/{name} " in title and search.owns(pid):
                os.kill(pid, signal.SIGKILL)

    return kill_it


def terminate_all(search: Search) -> None:
    os.killpg(search.process.pid, signal.SIGTERM)


def interrupt_twice(search: Search) -> None:
    search.process.send_signal(signal.SIGINT)
    search.wait_for("Ctrl-C again leaves at once")
    search.process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("event", "seconds"),
    [
        pytest.param(kill, 5, id="driver killed"),
        pytest.param(kill_part("raylet"), 90, id="raylet killed"),
        pytest.param(kill_part("gcs_server"), 90, id="head killed"),
        pytest.param(terminate_all, 15, id="SIGTERM to all"),
        pytest.param(interrupt_twice, 15, id="Ctrl-C twice"),
    ],
)
def test_the_same_command_again_ends_as_if_nothing_had_happened(
    workplace, undisturbed_training, event, seconds, record_property
):
    search = Search(workplace, *SETTINGS)
    search.wait_for("epoch 1/4")
    time.sleep(random.Random(seconds).uniform(0, 1))  # a moment within an epoch
    began = time.monotonic()
    event(search)
    search.process.wait(300)
    left = time.monotonic() - began
    record_property("seconds_until_the_command_ended", left)
    assert "Traceback" not in search.output.read_text(), search.output.read_text()
    assert search.left_over() == []
    record_property("seconds_until_no_process_was_left", time.monotonic() - began)
    if event in (terminate_all, interrupt_twice):
        assert "RUNNING" not in {row.state for row in store_of(workplace).trials()}
    again(workplace)
    assert tables(store_of(workplace)) == undisturbed_training
    assert scratch_folders({search.process.pid}) == []
    assert left < seconds, search.output.read_text()
