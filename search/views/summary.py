"""Lines that sum a study up: its best so far, who was pruned where, and what is left to do."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cellseg.config import gain
from cellseg.names import counted
from search.space import Space
from search.storage.progress import FOLDER
from search.storage.tables import TrialRow
from search.views.standings import Standings

BLOCKS = "▁▂▃▄▅▆▇█"
SILENT_SECONDS = 120.0
"""A search writes its tables with every epoch, and its trials their progress every few seconds."""


def best_so_far(rows: Iterable[TrialRow], metric: str) -> list[tuple[TrialRow, float]]:
    """List the trials with a value in the order in which they ended, those that run last, each with the best value
    until then."""
    scored = [row for row in rows if row.metric is not None]
    best, found = None, []
    for row in sorted(scored, key=lambda row: (row.ended is None, row.ended or "", row.number)):
        assert row.metric is not None
        best = row.metric if best is None else max(best, row.metric, key=lambda value: gain(metric, value))
        found.append((row, best))
    return found


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as a line of blocks, at most ``width`` of them; the last one is always shown. Empty for none."""
    if not values or width < 1:
        return ""
    if len(values) > width:
        values = [values[round((index + 1) * len(values) / width) - 1] for index in range(width)]
    low, high = min(values), max(values)
    if low == high:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[min(7, int(8 * (value - low) / (high - low)))] for value in values)


def describe_best(study: Standings, width: int) -> str:
    """Describe the best trial: its value, since when it leads, and the best so far as a sparkline.

    Args:
        width: characters of the sparkline at most.
    """
    if not study.leaderboard:
        return "best: none yet"
    best, metric = study.leaderboard[0], study.experiment.metric
    history = best_so_far(study.rows, metric)
    line = sparkline([value for _, value in history], width)
    since = f", since epoch {best.best_epoch}, running"
    if best.ended is not None:
        later = sum(row.ended is not None and row.ended > best.ended for row, _ in history)
        since = f", {age(best.ended)}" + (f", {counted(later, 'trial')} without a better one" if later else "")
    value = "" if best.metric is None else f"{best.metric:.4f}"
    return f"best {metric} {value} by t{best.number:04d}{since}{'  ' + line if line else ''}"


def age(moment: str) -> str:
    """Say how long ago a time of the tables is (UTC, ISO 8601)."""
    return f"{duration((now() - datetime.fromisoformat(moment)).total_seconds())} ago"


def now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(UTC)


def duration(seconds: float) -> str:
    """Write a duration as people do: 45 s, 3:20 min, 5:07 h, 3.2 d."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{whole / 86400:.1f} d"


def describe_pruned(rows: Iterable[TrialRow]) -> str:
    """Say how many trials were pruned at which rung, and why the last one was; empty for none."""
    pruned = [row for row in rows if row.state == "PRUNED"]
    if not pruned:
        return ""
    at = ", ".join(f"{count} at epoch {epoch}" for epoch, count in sorted(Counter(r.epochs for r in pruned).items()))
    last = max(pruned, key=lambda row: (row.ended or "", row.number))
    return f"pruned {at}; last t{last.number:04d}: {last.detail}"


@dataclass(frozen=True, slots=True)
class Remaining:
    """What a study still takes, estimated from what it took so far."""

    seconds: float
    """Wall-clock time with as many trials side by side as now."""
    trial_seconds: float
    """Time in epochs, of all trials together."""


def estimate_remaining(study: Standings, slots: int) -> Remaining | None:
    """Estimate what is left: the trials that are missing, as long and as slow as those so far. None before the first
    epoch.

    The first few trials say little about how many are pruned; until four have ended the plan does.
    """
    rows = study.rows
    epochs = sum(row.epochs for row in rows)
    if not epochs or study.num_finished >= study.experiment.trials:
        return None
    ended = [row.epochs for row in rows if row.state in {"COMPLETE", "PRUNED"}]
    per_trial = sum(ended) / len(ended) if len(ended) >= 4 else planned_epochs(study)
    missing = study.experiment.trials - study.num_finished
    open_epochs = [row.epochs for row in rows if row.state in {"RUNNING", "INTERRUPTED"}][:missing]
    # One that has outlived the average goes on to at least its next epoch.
    left = sum(max(1.0, per_trial - done) for done in open_epochs) + (missing - len(open_epochs)) * per_trial
    seconds = left * sum(row.seconds for row in rows) / epochs
    return Remaining(seconds / max(1, min(slots, missing)), seconds)


def planned_epochs(study: Standings) -> float:
    """Return the epochs of a trial on average, if one in ``reduction`` goes on from every rung."""
    space = study.experiment
    if not isinstance(space, Space) or space.asha is None:
        return space.epochs
    share, before, total = 1.0, 0, 0.0
    for epoch in (*space.rungs, space.epochs):
        total += share * (epoch - before)
        share, before = max(1 / space.trials, share / space.asha.reduction), epoch
    return total


def describe_cost(study: Standings, slots: int) -> str:
    """Describe what the study has used and what is left, in time and in hours of GPUs, or of trials without one."""
    remaining = estimate_remaining(study, slots)
    gpus = study.limits.gpus_per_trial
    rows = study.rows
    used = sum(map(study.limits.gpu_seconds, rows)) if gpus else sum(row.seconds for row in rows)
    unit = "GPU-hours" if gpus else "trial-hours"
    text = f"used {used / 3600:.2f} {unit}"
    if remaining is not None:
        left = remaining.trial_seconds * (gpus or 1)
        text += f", about {left / 3600:.2f} left, done in {duration(remaining.seconds)}"
    return text


def last_sign(study: Standings) -> str:
    """Say that trials which run have given no sign of life for a while, if so: the search may have been killed."""
    if not any(row.state == "RUNNING" for row in study.rows):
        return ""
    folder = study.store.folder
    files = [folder / "trials.parquet", *(folder / FOLDER).glob("t*.json")]
    changed = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    silent = time.time() - changed  # the file server's clock may differ from this one by seconds
    if silent < SILENT_SECONDS:
        return ""
    return f"; no sign of life for {duration(silent)}: unless epochs take that long, the search was killed"
