"""Which device computes, in which precision, and what its errors mean."""

import errno
import gc
import re
from collections.abc import Callable, Sequence
from typing import Literal, Self, TypeVar

import torch

from cellseg.errors import UserError

Memory = Literal["device", "host"]
"""Whose memory ran out: where the network computes, or that of this machine's processes beside it."""

CUDA_CONTEXT_BYTES = 600_000_000
"""What CUDA itself takes of a GPU for each process. torch's allocator does not count it."""

PIXELS_AT_ONCE = 8 << 20
"""Of the images that a GPU predicts together: eight of 1024 x 1024."""

_CUDA_OUT_OF_MEMORY = 2
"""``cudaErrorMemoryAllocation``."""
_DEVICE_TEXTS = re.compile(
    r"CUDA error: out of memory|CUDA out of memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
)
"""What torch raises as a plain RuntimeError on a GPU. Old versions, and what comes from another process, also lose
the type of the errors that have one."""
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
    """The type of mixed precision that ``train.amp`` asks for on ``device``; None for float32, as always on a CPU."""
    if device.type != "cuda":
        return None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def exhausted_memory(error: BaseException) -> Memory | None:
    """Whose memory ``error`` says has run out; None for any other error.

    Exceptions that have a type are told by it. Only where a library raises a bare RuntimeError its text decides.
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
    """Give back what nothing refers to any more, here and on the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def limit_gpu_memory(device: torch.device, share: float) -> None:
    """Let this process allocate no more of the GPU than its ``share`` in (0, 1), so that its neighbours keep theirs."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(share - CUDA_CONTEXT_BYTES / total, share / 2), device)


class Room:
    """How much goes through the network at a time in prediction: as much as is known to fit into memory."""

    def __init__(self, pixels: int):
        """``pixels``: of the images that go together, to begin with. One image goes however large it is."""
        self.pixels = pixels

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """A GPU is kept busy by several images at a time; a CPU gains nothing by them."""
        return cls(PIXELS_AT_ONCE if device.type == "cuda" else 1)

    def count(self, pixels: int) -> int:
        """How many images of so many ``pixels`` go together, at least 1."""
        return max(self.pixels // max(pixels, 1), 1)

    def map(self, function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], pixels: int) -> list:
        """The results of ``function`` for all ``items``, each an image of ``pixels``. It gets as many as go together.

        Where memory runs out, half as many go together from then on; what is done stays done.

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
            # Behind the handler, where nothing holds what the failed attempt had allocated.
            self.pixels = len(chunk) // 2 * pixels
            free_memory()
        return results
