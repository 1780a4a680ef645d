"""The reports of a trial beside its checkpoints: ``checkpoints/t0007/reports.jsonl``, a line for each epoch.

The driver writes its tables at most once a second or so. Epochs that it was told of and had not written when it was
killed are told again from here.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

REPORTS = "reports.jsonl"


def note_report(folder: Path, report: dict[str, Any]) -> None:
    """Add the report of an epoch whose checkpoints are on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / REPORTS).open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(report)}\n")  # after what may be half a line
        file.flush()
        os.fsync(file.fileno())


def noted_reports(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the latest report of each epoch, by its number; a line that a kill cut off is left out."""
    try:
        lines = (folder / REPORTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    reports = {}
    for line in filter(None, lines):
        with suppress(ValueError, KeyError, TypeError):
            report = json.loads(line)
            reports[int(report["epoch"])] = report
    return reports


def former_reports(folder: Path, known: int) -> list[dict[str, Any]]:
    """Return the reports of a trial that goes on from its checkpoint, up to that one's epoch: those that the study may
    have missed, and in any case the last, if its checkpoints tell it.

    Args:
        known: epochs that the study's tables have.
    """
    from cellseg.checkpoint import LAST, has_checkpoint, open_checkpoint

    if not has_checkpoint(folder / LAST):
        return []
    last = open_checkpoint(folder / LAST).info.epoch
    noted = noted_reports(folder)
    reports = [noted[epoch] for epoch in range(known + 1, last + 1) if epoch in noted]
    if (not reports or reports[-1]["epoch"] != last) and (former := last_report(folder)) is not None:
        reports.append(former)
    return reports


def last_report(folder: Path) -> dict[str, Any] | None:
    """Return the report of the epoch that a trial continues from, as its checkpoints tell it; None for a new trial.

    A search that was stopped may have missed it, and with it a rung or the trial's best value.
    """
    from cellseg.checkpoint import BEST, LAST, has_checkpoint, open_checkpoint

    if not (has_checkpoint(folder / LAST) and has_checkpoint(folder / BEST)):
        return None
    last, best = open_checkpoint(folder / LAST).info, open_checkpoint(folder / BEST).info
    if best.epoch > last.epoch:  # killed between the two: that epoch is trained again
        return None
    unknown = dict.fromkeys(("learning_rate", "images_per_second", "peak_memory_bytes", "parameters", "micro_batch"))
    return unknown | {
        "epoch": last.epoch,
        "skipped_steps": 0,
        "losses": {},
        "metrics": last.metrics,
        "value": last.value,
        "best_value": best.value,
        "best_epoch": best.epoch,
        "seconds": 0.0,
        "ending": None,
    }
