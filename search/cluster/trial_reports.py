"""The reports of a trial that goes on, as its checkpoint tells them.

The driver writes its tables at most once a second or so. Epochs that it was told of and had not written when it was
killed are told again from here.
"""

from pathlib import Path
from typing import Any


def former_reports(folder: Path, known: int) -> list[dict[str, Any]]:
    """Return the reports of a trial's epochs beyond the first ``known``, as its checkpoint tells them, at least that of
    the epoch from which it continues; none for a new trial.

    A search that was stopped may have missed them, and with them a rung, the trial's best value or its end.
    """
    from cellseg.checkpoint import BEST, LAST, has_checkpoint, open_checkpoint
    from cellseg.training.run import REPORTS

    if not has_checkpoint(folder / LAST):
        return []
    checkpoint = open_checkpoint(folder / LAST)
    last = checkpoint.info
    reports = (checkpoint.load_training() or {}).get(REPORTS, [])
    if reports:
        return [report for report in reports if report["epoch"] > min(known, last.epoch - 1)]
    # The checkpoint of an earlier version.
    if not has_checkpoint(folder / BEST) or (best := open_checkpoint(folder / BEST).info).epoch > last.epoch:
        return []  # killed between the two: that epoch is trained again
    unknown = dict.fromkeys(("learning_rate", "images_per_second", "peak_memory_bytes", "parameters", "micro_batch"))
    return [
        unknown
        | {
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
    ]
