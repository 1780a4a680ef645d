"""Devices: choice, precision, memory, and the meaning of their errors; the CPUs that this process may use."""

import errno
import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar

import torch

from cellseg.errors import UserError

Memory = Literal["device", "host"]
"""The memory that ran out: the GPU's, or the main memory of this machine."""

CUDA_CONTEXT_BYTES = 600_000_000
"""GPU memory that CUDA itself takes for each process. torch's allocator does not count it."""

PIXELS_AT_ONCE = 8 << 20
"""Total pixels of the images that a GPU predicts together: eight of 1024 x 1024."""

_CUDA_OUT_OF_MEMORY = 2
"""``cudaErrorMemoryAllocation``."""
_DEVICE_TEXTS = re.compile(
    r"CUDA error: out of memory|CUDA out of memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
)
"""Texts of plain RuntimeErrors that torch raises on a GPU. In old versions, and in errors from another process, typed
errors lose their type too."""
_HOST_TEXTS = re.compile(
    r"DefaultCPUAllocator|CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED|-4:Insufficient memory"
    r"|Caught \w*MemoryError in DataLoader worker|DataLoader worker \(pid \d+\) is killed by signal: (Killed|Bus error)"
)
"""torch's CPU allocator, cuDNN, OpenCV, and a loader worker: one that the system killed for memory, or one for which
``/dev/shm`` was too small."""
_BROKEN_TEXTS = re.compile(r"CUDA error|cuDNN error|device-side assert")

Item = TypeVar("Item")
Result = TypeVar("Result")


def pick_device(name: str | None = None) -> torch.device:
    """Return the device called ``name``, or the first GPU, or the CPU.

    Raises:
        UserError: a name torch does not know, or a device that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device: must be a device of this machine, but got '{name}' ({str(error).splitlines()[0]})."
        ) from error
    return device


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """Return the mixed-precision type of ``train.amp`` on ``device``; None for float32, which a CPU always uses."""
    if device.type != "cuda":
        return None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def exhausted_memory(error: BaseException) -> Memory | None:
    """Return the memory whose exhaustion caused ``error``; None for any other error.

    Typed exceptions are recognised by type. Only for a bare RuntimeError does the text decide.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "device"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "host"
    if getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY and _is_accelerator_error(error):
        return "device"
    # cv2.error is an Exception of its own, and loses its code where it comes from a loader's worker.
    if isinstance(error, RuntimeError) or type(error).__module__ == "cv2":
        if _DEVICE_TEXTS.search(str(error)):
            return "device"
        if _HOST_TEXTS.search(str(error)):
            return "host"
        # "DataLoader worker (pid(s) 12) exited unexpectedly" is raised from the error that says which signal killed it.
        if "DataLoader worker" in str(error) and error.__cause__ is not None:
            return exhausted_memory(error.__cause__)
    return None


def is_gpu_broken(error: BaseException) -> bool:
    """Whether this process can no longer use its GPU: after such an error every further call fails too."""
    if exhausted_memory(error) is not None:
        return False
    return _is_accelerator_error(error) or (
        isinstance(error, RuntimeError) and _BROKEN_TEXTS.search(str(error)) is not None
    )


def _is_accelerator_error(error: BaseException) -> bool:
    kind = getattr(torch, "AcceleratorError", None)  # since torch 2.8
    return kind is not None and isinstance(error, kind)


def free_memory() -> None:
    """Release unreferenced memory, in this process and on the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def limit_gpu_memory(device: torch.device, share: float) -> None:
    """Let this process allocate no more of the GPU than its ``share`` in (0, 1), so that its neighbours keep theirs."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(share - CUDA_CONTEXT_BYTES / total, share / 2), device)


class Room:
    """The number of images that go through the network at a time: as many as are known to fit into memory."""

    def __init__(self, pixels: int):
        """``pixels``: initial limit on the pixels of a batch. A single image is always allowed."""
        self.pixels = pixels

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """Start with several images on a GPU, to keep it busy, and with one on a CPU, which gains nothing from more."""
        return cls(PIXELS_AT_ONCE if device.type == "cuda" else 1)

    def count(self, pixels: int) -> int:
        """Return how many images of ``pixels`` each go together, at least 1."""
        return max(self.pixels // max(pixels, 1), 1)

    def map(self, function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], pixels: int) -> list:
        """Apply ``function`` to batches of ``items``, each an image of ``pixels``, and return all results.

        If memory runs out, batches are half as large from then on; finished results are kept.

        Raises:
            torch.OutOfMemoryError, ...: a single item does not fit; see :func:`exhausted_memory`.
        """
        results: list[Result] = []
        while len(results) < len(items):
            chunk = items[len(results) : len(results) + self.count(pixels)]
            try:
                results += function(chunk)
                continue
            except Exception as error:
                if exhausted_memory(error) is None or len(chunk) == 1:
                    raise
            # Outside the handler, where nothing refers to the memory of the failed attempt.
            self.pixels = len(chunk) // 2 * pixels
            free_memory()
        return results


def usable_cpus(membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the CPUs of this process, at least 1: those that it may run on (its affinity, as a batch system sets it),
    at most the share that its control groups give it, rounded down (a container's limit).

    Args:
        membership: Linux's list of the control groups that this process is in.
        groups: where control groups are mounted, of version 1 or 2.
    """
    may_run_on = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([may_run_on, *_quotas(membership, groups)])))


def _quotas(membership: Path, groups: Path) -> Iterator[float]:
    """CPUs that each control group around this process allows, of those that set a limit."""
    for folder in _folders(membership, groups):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and float(quota) > 0:
                yield float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):  # no limits here, or of a kind that is not known
            continue


def _folders(membership: Path, groups: Path) -> Iterator[Path]:
    """The folders of the control groups: a process is bound by its own and by all around it. Inside a container their
    names may be those outside; what is mounted there is the container's own."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / controllers if controllers else groups
        folder = root / name.lstrip("/")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(root) and place.is_dir())
