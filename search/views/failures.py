"""Trials that failed, for people: how many for which reason, and what to do about it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from search.storage.tables import TrialRow
from search.storage.trial_logs import log_path
from search.study.failures import Cause, headline

REMEDIES: Mapping[str, str] = {
    "non-finite": "lower the upper end of optim.lr, or set optim.clip_norm",
    "out-of-memory": "smaller train.batch_size or data.shorter_side, or more memory for a trial",
    "invalid": "give the key that the message names other values, or a condition",
    "bug": "read the log; report what is a bug of cellseg-search",
    "lost": "look for a machine that kills processes, often for lack of memory: cellseg-search doctor",
    "storage": "free or mount the disk, then run the same command again",
}
"""Ending of a trial -> what to try, in a line."""


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Trials that ended for the same reason."""

    ending: str
    """Its kind, see :data:`search.study.study.OUTCOMES`."""
    text: str
    """What the latest of them said, in a line; may be empty."""
    trials: tuple[int, ...]
    """Their numbers, in order."""
    log: Path | None
    """The log of the latest one; None if it has none."""

    @property
    def remedy(self) -> str:
        """What to try; empty for an ending that this version does not know."""
        return REMEDIES.get(self.ending, "")


def failure_groups(rows: Iterable[TrialRow], folder: Path) -> list[FailureGroup]:
    """Group the trials that failed or did not fit into memory by cause, the most frequent first.

    Args:
        folder: the study's.
    """
    by_cause: dict[Cause, list[TrialRow]] = {}
    for row in rows:
        if row.state in {"FAILED", "INFEASIBLE"}:
            by_cause.setdefault(Cause.of(row.ending, row.detail), []).append(row)
    groups = []
    for cause, found in by_cause.items():
        log = log_path(folder, found[-1].number)
        numbers = tuple(row.number for row in found)
        groups.append(FailureGroup(cause.ending, headline(found[-1].detail), numbers, log if log.exists() else None))
    return sorted(groups, key=lambda group: -len(group.trials))


def describe_failures(rows: Iterable[TrialRow], folder: Path, most: int) -> list[str]:
    """Say why trials failed, how many, what to try, and where the log of the latest is.

    Args:
        folder: the study's.
        most: number of reasons at most.
    """
    lines = []
    for group in failure_groups(rows, folder)[:most]:
        times = f" x{len(group.trials)}" if len(group.trials) > 1 else ""
        text = f": {group.text}" if group.text else ""
        remedy = f". Try: {group.remedy}" if group.remedy else ""
        log = f"; log {group.log}" if group.log else ""
        lines.append(f"{group.ending}{times} (last t{group.trials[-1]:04d}){text}{remedy}{log}")
    return lines
