import errno

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cellseg import device as module
from cellseg.device import Room, exhausted_memory, is_gpu_broken, limit_gpu_memory, pick_device
from cellseg.errors import UserError


def test_the_default_is_a_gpu_where_there_is_one_and_else_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


def test_a_device_may_be_named():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError, match="--device: must be a device of this machine, but got '") as raised:
        pick_device(name)
    assert "\n" not in str(raised.value)


FULL = "CUDA out of memory. Tried to allocate 2 GiB."


def accelerator_error(text: str, code: int) -> Exception:
    """As torch makes it: the code is an attribute."""
    error = torch.AcceleratorError(text)
    error.error_code = code  # type: ignore[attr-defined]
    return error


MEMORY_ERRORS = [
    (torch.OutOfMemoryError(FULL), "device"),
    (accelerator_error("CUDA error: out of memory\nCUDA kernel errors might be", 2), "device"),
    (accelerator_error("CUDA error: in another language", 2), "device"),
    (RuntimeError("CUDA error: out of memory"), "device"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "device"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "device"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "host"),
    (MemoryError(), "host"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "host"),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), "host"),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that"), "host"),
    (cv2.error("OpenCV(5.0) error: (-4:Insufficient memory) Failed to allocate 9 bytes"), "host"),
]
BROKEN_ERRORS = [
    accelerator_error("CUDA error: an illegal memory access was encountered", 700),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("device-side assert triggered"),
]
OTHER_ERRORS = [
    RuntimeError("DataLoader worker (pid 12) is killed by signal: Segmentation fault. "),
    RuntimeError("shapes differ"),
    OSError(errno.ENOENT, "No such file"),
    UserError("space: 'CUDA error: out of memory' is no name. Choose another."),
    KeyError("CUDA out of memory"),
]


@pytest.mark.parametrize(("error", "memory"), MEMORY_ERRORS)
def test_memory_that_ran_out_is_told_in_all_its_words(error, memory):
    assert exhausted_memory(error) == memory
    assert not is_gpu_broken(error), "a smaller batch may fit into the same process"


@pytest.mark.parametrize("error", BROKEN_ERRORS)
def test_a_broken_gpu_is_no_lack_of_memory(error):
    assert is_gpu_broken(error)
    assert exhausted_memory(error) is None


@pytest.mark.parametrize("error", OTHER_ERRORS)
def test_other_errors_are_neither(error):
    assert exhausted_memory(error) is None
    assert not is_gpu_broken(error)


def too_large(index: int) -> np.ndarray:
    return np.zeros((1 << 40, 1 << 10))


def test_memory_that_a_loader_process_lacks_is_told():
    class Images:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return too_large(index)

    with pytest.raises(RuntimeError) as raised:
        list(DataLoader(Images(), num_workers=1))
    assert not isinstance(raised.value, MemoryError), "numpy's own type cannot travel"
    assert exhausted_memory(raised.value) == "host"


def test_memory_that_numpy_lacks_is_told():
    with pytest.raises(MemoryError) as raised:
        too_large(0)
    assert exhausted_memory(raised.value) == "host"


def fits(most: int, seen: list[int]):
    def function(items):
        seen.append(len(items))
        if len(items) > most:
            raise torch.OutOfMemoryError(FULL)
        return [item * 10 for item in items]

    return function


def test_where_memory_runs_out_half_as_many_go_together_and_the_room_remembers():
    seen: list[int] = []
    room = Room(pixels=800)
    assert room.map(fits(3, seen), list(range(10)), pixels=100) == [item * 10 for item in range(10)]
    assert seen == [8, 4, 2, 2, 2, 2, 2]
    seen.clear()
    assert room.map(fits(3, seen), [1, 2, 3], pixels=100) == [10, 20, 30]
    assert seen == [2, 1]
    assert room.count(10) == 20 and room.count(10_000) == 1


def test_one_that_does_not_fit_by_itself_is_an_error_and_others_pass_through():
    with pytest.raises(torch.OutOfMemoryError):
        Room(pixels=4).map(fits(0, []), [1, 2, 3], pixels=1)
    with pytest.raises(ZeroDivisionError):
        Room(pixels=4).map(lambda items: [1 // 0], [1, 2, 3], pixels=1)


def test_a_cpu_predicts_one_image_at_a_time_and_a_gpu_several():
    assert Room.of(torch.device("cpu")).count(32 * 32) == 1
    assert Room.of(torch.device("cuda")).count(1024 * 1024) == 8


@pytest.mark.parametrize(("share", "fraction"), [(0.5, 0.4925), (0.25, 0.2425), (0.01, 0.005)])
def test_a_share_of_a_gpu_leaves_room_for_what_cuda_itself_takes(monkeypatch, share, fraction):
    class Properties:
        total_memory = 80_000_000_000

    given = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *arguments: given.append(arguments))
    limit_gpu_memory(torch.device("cuda"), share)
    ((value, device),) = given
    assert value == pytest.approx(fraction)
    assert device == torch.device("cuda")
    assert module.CUDA_CONTEXT_BYTES == 600_000_000
