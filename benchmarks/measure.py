"""Shared parts of the benchmarks: fair timing, peak memory, and results with their origin.

A benchmark compares contenders, usually ``ours`` and ``reference``, which do the same work in one process. They take
turns, so that a change in the machine's load meets all of them; figures are medians.
"""

import argparse
import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.files import write_json

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "torchvision", "numpy", "albumentations", "opencv-python-headless", "pycocotools")
"""Packages that affect the figures."""

LEAST_BYTES = 1 << 20
"""A smaller need cannot be told: it fits into what the process freed before and still holds."""


@dataclass(frozen=True)
class Measurement:
    """Result of :func:`alternate`; every dict has an entry for each contender."""

    seconds: dict[str, list[float]]
    """Time of each run."""
    peak_extra_bytes: dict[str, int]
    """Most memory that a run held beyond what was there before it; empty where it was not asked for."""
    results: dict[str, Any]
    """Return value of the last run."""

    def ratio(self, over: str, under: str) -> float:
        """Median time of ``over`` for each second of ``under``."""
        return median(self.seconds[over]) / median(self.seconds[under])

    def memory_ratio(self, over: str, under: str) -> float:
        """Peak extra memory of ``over`` for each byte of ``under``, which counts as LEAST_BYTES at least."""
        return self.peak_extra_bytes[over] / max(self.peak_extra_bytes[under], LEAST_BYTES)


@dataclass(frozen=True)
class Report:
    """The outcome of one benchmark, as ``--json`` writes it (with versions and hardware)."""

    benchmark: str
    """The name of its module."""
    description: str
    """The comparison in one sentence."""
    parameters: dict[str, Any]
    """Sizes of the work."""
    seconds: dict[str, list[float]]
    """Raw times of each contender, in the order in which they were taken."""
    ratios: dict[str, float]
    """The figures that matter; the benchmark's module says what each means."""
    peak_extra_bytes: dict[str, int] = field(default_factory=dict)
    """Peak memory of each contender where it was measured."""
    figures: dict[str, float] = field(default_factory=dict)
    """Figures of ours that are no ratios; the benchmark's module says what each means."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"versions": versions(), "hardware": hardware()}


def alternate(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    per_round: Mapping[str, int] | None = None,
    memory: "torch.device | str | None" = None,
) -> Measurement:
    """Run the contenders in turn, ``rounds`` times, every other round in reverse order.

    Nothing warms up here: run what caches something on first use once before.

    Args:
        rounds: at least 1.
        per_round: runs in a row of a contender in each round, for one much quicker than the others; else 1.
        memory: measure the peak memory of this device too: "cpu" (Linux) is this process's, of which what an earlier
            run freed may linger and be used again unseen, so put the contender that needs little first.

    Raises:
        UserError: memory is asked for where it cannot be measured.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, int] = {} if memory is None else dict.fromkeys(contenders, 0)
    results: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(contenders) if number % 2 == 0 else reversed(list(contenders)):
            if memory is not None:
                gc.collect()
            for _ in range((per_round or {}).get(name, 1)):
                results.pop(name, None)  # the last result is not memory of this run
                before = 0 if memory is None else _restart_peak(memory)
                started = time.perf_counter()
                results[name] = contenders[name]()
                seconds[name].append(time.perf_counter() - started)
                if memory is not None:
                    peaks[name] = max(peaks[name], _peak(memory) - before)
    return Measurement(seconds, peaks, results)


def _restart_peak(device: "torch.device | str") -> int:
    """Forget the peak of what this process holds on ``device``; returns the bytes it holds now."""
    if _is_cuda(device):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):  # a libc without it keeps what was freed, see `alternate`
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except OSError as error:
        raise UserError(
            f"memory: /proc/self/clear_refs must be writable, but got '{error.strerror}'. Measure on Linux."
        ) from error


def _peak(device: "torch.device | str") -> int:
    """Most bytes that this process held on ``device`` since :func:`_restart_peak`."""
    if _is_cuda(device):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM")


def _is_cuda(device: "torch.device | str") -> bool:
    return str(device).startswith("cuda")


def _resident(field_name: str) -> int:
    """A figure of this process's memory from Linux, in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field_name + ":"))


def available_bytes() -> int | None:
    """Memory that can still be taken without swapping; None where Linux does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenCV and torch use one thread, as they do in a loader's worker."""
    import cv2
    import torch

    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions that figures depend on: Python's and those of ``packages`` that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine: processor, cores that may be used, memory, threads of torch, and the GPU or None."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def table(report: Report) -> str:
    """The report as lines of text: a contender a line, then the ratios."""
    width = max(len(name) for name in (*report.seconds, *report.ratios, *report.figures))
    lines = [report.description, ""]
    for name, times in report.seconds.items():
        line = f"{name:<{width}}  {format_seconds(median(times)):>9}  (runs: {len(times)})"
        if name in report.peak_extra_bytes:
            line += f"  {format_bytes(report.peak_extra_bytes[name]):>9} of memory"
        lines.append(line)
    numbers = report.ratios | report.figures
    lines += [f"{name:<{width}}  {format_ratio(number):>9}" for name, number in numbers.items()]
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def format_bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def format_ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def make_parser(name: str, description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes; ``rounds`` is the default of ``--rounds``."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write raw times, ratios, versions and hardware")
    parser.add_argument("--toy", action="store_true", help="sizes that take a second: shows that it runs, not how fast")
    parser.add_argument(
        "--rounds", metavar="N", type=at_least_one, default=rounds, help=f"turns of each contender (default: {rounds})"
    )
    return parser


def add_sizes(parser: argparse.ArgumentParser, sizes: Mapping[str, tuple[int, str]]) -> None:
    """Add an option for each size: its default, and its help, to which the default is appended."""
    for name, (default, text) in sizes.items():
        help_text = f"{text} (default: {default})"
        parser.add_argument(f"--{name}", metavar="N", type=at_least_one, default=default, help=help_text)


def at_least_one(text: str) -> int:
    """An argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but got {value}")
    return value


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], Report],
    toy: Mapping[str, int],
    argv: Sequence[str] | None,
) -> int:
    """A benchmark's command: measure, print the table, write the JSON; returns the exit status.

    Args:
        toy: what ``--toy`` makes of the arguments.
    """

    def command(arguments: argparse.Namespace) -> int:
        if arguments.toy:
            vars(arguments).update(toy)
        report = measure(arguments)
        say(table(report))
        if arguments.json is not None:
            write_json(arguments.json, report.as_json())
        return EXIT_OK

    return run_command(parser, command, argv)
