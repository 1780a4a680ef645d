"""Utilisation of a GPU, as `nvidia-smi` reports it, and the work of a step."""

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from cellseg.errors import UserError

if TYPE_CHECKING:
    import torch

PERIOD_MS = 200
"""Between two readings. Each is the share of the time since the one before in which a kernel ran."""

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
"""CUDA's own calls, as the profiler names them."""

Result = TypeVar("Result")


def calls_of(function: Callable[[], object], device: "torch.device") -> tuple[int, int]:
    """(launches, waits) of one call of ``function``: kernels that the GPU is asked to run, and times the host waits.

    On a GPU CUDA's own calls are counted; on a CPU operators stand for both, see :mod:`benchmarks.operators`.
    """
    import torch

    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        torch.cuda.synchronize(device)
        with torch.profiler.profile(activities=activities) as profile:
            function()
        counts = {event.key: event.count for event in profile.key_averages()}
        return sum(counts.get(name, 0) for name in LAUNCHES), sum(counts.get(name, 0) for name in SYNCS)

    from benchmarks.operators import count_as_on_a_gpu

    counted = count_as_on_a_gpu(function)
    return counted.launches, counted.waits


class Utilisation:
    """Reads `nvidia-smi` while a function runs; does nothing where the device is no GPU."""

    def __init__(self, device: "torch.device"):
        self.device = device
        self.readings: list[float] = []
        """Shares in [0, 1], in turn."""

    def during(self, function: Callable[[], Result]) -> Callable[[], Result]:
        """``function``, with the GPU read in all its calls.

        Raises:
            UserError: there is a GPU, but no nvidia-smi.
        """
        if self.device.type != "cuda":
            return function

        def watched() -> Result:
            command = ["nvidia-smi", f"--id={self.device.index or 0}", f"--loop-ms={PERIOD_MS}"]
            command += ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            try:
                reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            except OSError as error:
                raise UserError(
                    f"nvidia-smi: must be there to tell how busy the GPU is, but got '{error.strerror}'. "
                    "Install the driver's tools."
                ) from error
            try:
                return function()
            finally:
                reader.terminate()
                lines = reader.communicate()[0].split()
                self.readings += [int(line) / 100 for line in lines if line.isdigit()]

        return watched

    def mean(self) -> float:
        """Mean of the readings; not a number where there is none."""
        return sum(self.readings) / len(self.readings) if self.readings else float("nan")
