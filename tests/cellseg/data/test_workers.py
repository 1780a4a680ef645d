"""How many processes load images, and what shared memory has room for."""

import warnings

import pytest
import torch

from cellseg.data import workers
from cellseg.data.loader import training_loader
from cellseg.data.workers import BATCHES_AHEAD, IN_HAND, largest_batch_bytes, num_workers
from cellseg.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
INDICES = (0, 1, 2, 3, 4, 5)


@pytest.fixture
def machine(monkeypatch):
    """``machine(cpus, threads, gpus, free)``: what this process may use, and bytes free in shared memory."""

    def make(cpus: int = 64, threads: int = 64, gpus: int = 1, free: int | None = 10**12) -> None:
        monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(workers, "free_shared_memory", lambda: free)

    return make


@pytest.mark.parametrize(
    ("resources", "batches", "expected"),
    [
        ({"cpus": 8, "threads": 8}, 100, 7),
        ({"cpus": 32, "threads": 6}, 100, 5),  # a search gave this trial six
        ({"cpus": 32, "threads": 32, "gpus": 4}, 100, 7),
        ({"cpus": 1, "threads": 1}, 100, 1),
        ({"cpus": 2, "threads": 2, "gpus": 8}, 100, 1),
        ({}, 100, 16),
        ({}, 3, 3),
        ({"free": None}, 100, 16),
    ],
)
def test_auto_takes_the_cpus_that_are_given_for_a_gpu(packed, tiny_config, machine, resources, batches, expected):
    machine(**resources)
    assert num_workers(packed, INDICES, tiny_config(), GPU, batches) == expected
    assert num_workers(packed, INDICES, tiny_config(train__workers=2), GPU, batches) == 2


def test_auto_starts_no_process_where_a_cpu_trains(packed, tiny_config, machine):
    machine()
    assert num_workers(packed, INDICES, tiny_config(), CPU, 100) == 0
    loader, _ = training_loader(packed, INDICES, tiny_config(), CPU)
    assert loader.num_workers == 0
    assert tiny_config().train.workers == "auto"


def test_a_batch_is_as_large_as_the_images_and_planes_that_it_may_hold(packed, tiny_config):
    for flat in ({}, {"data__shorter_side": 90}, {"data__crop": 40}, {"train__batch_size": 50}):
        config = tiny_config(augment__preset="flips", **flat)
        loader, batches = training_loader(packed, INDICES, config)
        sizes = []
        for batches.epoch in range(1, 6):
            for batch in loader:
                sizes.append(sum(image.nbytes + target["planes"].nbytes for image, target in batch))
        largest = largest_batch_bytes(packed, INDICES, config)
        assert max(sizes) <= largest < 1.3 * max(sizes)


def test_a_number_of_workers_that_shared_memory_has_no_room_for_is_refused(packed, tiny_config, machine):
    batch = largest_batch_bytes(packed, INDICES, tiny_config())
    machine(free=(3 * BATCHES_AHEAD + IN_HAND) * batch)
    assert num_workers(packed, INDICES, tiny_config(train__workers=3), GPU, 9) == 3
    with pytest.raises(UserError, match=r"train\.workers: 4 loader processes .*, but got .* at most 3 workers"):
        training_loader(packed, INDICES, tiny_config(train__workers=4), CPU)
    machine(free=0)
    with pytest.raises(UserError, match=r"got 0 MB free in /dev/shm\. Give the container more .* at most 0"):
        num_workers(packed, INDICES, tiny_config(train__workers=1), GPU, 9)
    assert num_workers(packed, INDICES, tiny_config(train__workers=0), GPU, 9) == 0


@pytest.mark.parametrize("room", [0, 1, 2])
def test_auto_takes_as_many_as_shared_memory_has_room_for_and_says_so(packed, tiny_config, machine, room):
    batch = largest_batch_bytes(packed, INDICES, tiny_config())
    machine(free=(room * BATCHES_AHEAD + IN_HAND) * batch)
    with pytest.warns(RuntimeWarning, match=rf"7 loader processes need .* Using {room}\. Give the container more"):
        assert num_workers(packed, INDICES, tiny_config(), GPU, 7) == room
    machine()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert num_workers(packed, INDICES, tiny_config(), GPU, 7) == 7


def test_the_room_in_shared_memory_is_that_of_the_system():
    free = workers.free_shared_memory()
    assert free is None or free > 0
