"""All benchmarks of speed and memory, each in a process of its own, in one Markdown table."""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import format_bytes, format_ratio, format_seconds
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.files import atomic_path, read_json

BENCHMARKS = ("input_pipeline", "postprocess", "train_step", "epoch", "evaluate")
GPU_BENCHMARKS = ("prediction", "shared_gpu")
"""Benchmarks that are informative on a GPU only; ``--only`` runs them anywhere.

All are modules with a command that takes ``--json FILE`` and ``--toy`` and writes a
:class:`benchmarks.measure.Report`."""
GPU_PAGE = Path("results/benchmarks/gpu.md")
"""Path of the page on a machine with a GPU, unless ``--out`` gives another."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks and write the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__)
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"write the table here as well (default with a GPU: {GPU_PAGE})"
    )
    parser.add_argument(
        "--toy", action="store_true", help="sizes that take a second: shows that they run, not how fast"
    )
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=available(), help="run only these")
    return run_command(parser, _run_all, argv)


def available() -> tuple[str, ...]:
    """The benchmarks that this checkout has."""
    return tuple(name for name in (*BENCHMARKS, *GPU_BENCHMARKS) if importlib.util.find_spec(f"benchmarks.{name}"))


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """A page with the machine, the ratios, and the times behind them.

    Args:
        reports: contents of the files that ``--json`` wrote, from one machine; at least one.
    """
    hardware = reports[0]["hardware"]
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB, {hardware['gpu'] or 'no GPU'}"
    versions = ", ".join(f"{name} {number}" for name, number in reports[0]["versions"].items())
    ratios = [
        (report["benchmark"], name, format_ratio(ratio))
        for report in reports
        for name, ratio in report["ratios"].items()
    ]
    figures = [
        (report["benchmark"], name, format_ratio(figure))
        for report in reports
        for name, figure in report.get("figures", {}).items()
    ]
    times = [row for report in reports for row in _times(report)]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"On {machine}; {versions}.",
            "Made by `python -m benchmarks.all`; `docs/benchmarks.md` explains what is measured.",
            "",
            *_table(("benchmark", "ratio", "value"), ratios),
            "",
            *([*_table(("benchmark", "figure", "value"), figures), ""] if figures else []),
            *_table(("benchmark", "contender", "median", "least", "most", "runs", "peak extra memory"), times),
            "",
            *(f"- {report['benchmark']}: {report['description']}." for report in reports),
            "",
        ]
    )


def _times(report: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, seconds in report["seconds"].items():
        figures = (format_seconds(figure) for figure in (median(seconds), min(seconds), max(seconds)))
        peak = report.get("peak_extra_bytes", {}).get(name)
        memory = "" if peak is None else format_bytes(peak)
        rows.append((report["benchmark"], name, *figures, str(len(seconds)), memory))
    return rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _run_all(arguments: argparse.Namespace) -> int:
    import torch

    has_gpu = torch.cuda.is_available()
    names = arguments.only or [name for name in available() if has_gpu or name not in GPU_BENCHMARKS]
    out = arguments.out or (GPU_PAGE if has_gpu and not (arguments.only or arguments.toy) else None)
    with tempfile.TemporaryDirectory() as folder:
        reports = [_report(name, Path(folder) / f"{name}.json", arguments.toy) for name in names]
    page = markdown(reports)
    say(page)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return EXIT_OK


def _report(name: str, file: Path, toy: bool) -> dict[str, Any]:
    """Run a benchmark in a process of its own, which has no memory left over from another."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file), *(["--toy"] if toy else [])]
    status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if status:
        raise UserError(f"{name}: the benchmark must succeed, but got exit status {status}. See its message above.")
    return read_json(file)


if __name__ == "__main__":
    sys.exit(main())
