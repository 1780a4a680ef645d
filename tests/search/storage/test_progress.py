"""The progress that a trial's process tells within an epoch."""

import pytest

from search.storage.progress import FOLDER, ProgressWriter, open_progress, read_progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def study(tmp_path):
    with open_progress(tmp_path):
        yield tmp_path


def writer(study, clock, **more) -> ProgressWriter:
    return ProgressWriter(study / "checkpoints" / "t0007", 4, lambda: ("cpu", 2**30), clock, **more)


def test_a_trial_tells_from_its_first_moment_on(study, clock):
    assert read_progress(study, 7) is None
    writer(study, clock)
    now = read_progress(study, 7)
    assert (now.phase, now.epoch, now.device, now.memory_bytes) == ("starting", 0, "cpu", 2**30)


def test_batches_become_a_share_and_a_speed(study, clock):
    progress = writer(study, clock)
    for done in range(1, 11):
        progress.step(done, 20)
        clock.now += 0.5
    now = read_progress(study, 7)  # written every two seconds
    assert (now.phase, now.epoch, now.done, now.total, now.share) == ("training", 1, 9, 20, 9 / 20)
    assert now.images_per_second == pytest.approx(8), "four images in half a second, from the second batch on"


def test_epochs_are_counted_also_where_training_continues_or_begins_again(study, clock):
    progress = writer(study, clock)
    progress.continue_from(5)
    for done, total, epoch, phase in (
        (1, 2, 6, "training"),
        (1, 2, 6, "training"),  # memory ran out: with half as many images at a time
        (2, 2, 6, "validating"),
        (1, 2, 7, "training"),
        (2, 2, 7, "validating"),
    ):
        progress.step(done, total)
        now = read_progress(study, 7)
        assert (now.epoch, now.phase) == (epoch, phase)


def test_an_epoch_of_one_batch_counts_too(study, clock):
    progress = writer(study, clock)
    progress.step(1, 1)
    progress.step(1, 1)
    assert read_progress(study, 7).epoch == 2


def test_a_file_that_is_not_ours_tells_nothing(study):
    for text in ("", "[]", '{"phase": "x", "colour": 1}', "\0"):
        (study / FOLDER / "t0007.json").write_text(text)
        assert read_progress(study, 7) is None


def test_an_ended_trial_and_an_ended_search_leave_nothing(tmp_path, clock):
    with open_progress(tmp_path):
        progress = writer(tmp_path, clock)
        progress.close()
        assert not list((tmp_path / FOLDER).iterdir())
        progress = writer(tmp_path, clock)
    assert not (tmp_path / FOLDER).exists()
    progress.step(1, 2)  # by a process that outlives the search
    assert not (tmp_path / FOLDER).exists()
