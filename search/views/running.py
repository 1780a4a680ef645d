"""The running trials on the board: a line each, with a bar for its epoch, its speed and the time that is left."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.storage.progress import Progress, read_progress
from search.storage.tables import TrialRow
from search.views.standings import Standings
from search.views.summary import duration

LEAST_BAR, MOST_BAR = 6, 40
LEAST_SHARE = 0.02
"""A smaller part of an epoch says nothing about how long the rest takes."""


@dataclass(frozen=True, slots=True)
class RunningTrial:
    """A trial that runs, with what its process tells."""

    row: TrialRow
    progress: Progress | None
    """None: its process has not told anything yet, or no longer."""
    epochs: int
    """Its full length."""
    seconds_left: float | None
    """Until it has trained all its epochs; None if nothing says so yet."""

    @property
    def share(self) -> float:
        """Share of the present epoch that is done, in [0, 1]."""
        if self.progress is None or self.progress.epoch <= self.row.epochs:
            return 0.0  # what it tells is older than the table
        return self.progress.share

    @property
    def phase(self) -> str:
        """What it does, for a person."""
        if self.progress is None:
            return "waits for its process" if not self.row.epochs else "training"
        return self.progress.phase


def running_trials(study: Standings) -> list[RunningTrial]:
    """List the trials that run, by number, with the files that their processes write."""
    rows = study.rows
    usual = [row.seconds_per_epoch for row in rows if row.seconds_per_epoch]
    typical = statistics.median(usual) if usual else None
    return [_look(study, row, typical) for row in rows if row.state == "RUNNING"]


def _look(study: Standings, row: TrialRow, typical: float | None) -> RunningTrial:
    progress = read_progress(study.store.folder, row.number)
    epochs = json.loads(row.config).get("train.epochs") or study.experiment.epochs
    trial = RunningTrial(row, progress, epochs, None)
    per_epoch = row.seconds_per_epoch
    if per_epoch is None and progress is not None and trial.share > LEAST_SHARE:
        per_epoch = progress.epoch_seconds / trial.share
    per_epoch = per_epoch or typical
    left = None if per_epoch is None else per_epoch * max(0.0, epochs - row.epochs - trial.share)
    return RunningTrial(row, progress, epochs, left)


def running_table(trials: Sequence[RunningTrial], metric: str, width: int) -> Table:
    """Make the table of running trials; the bar is as long as there is room.

    Args:
        width: characters of a line.
    """
    wide = width >= 100
    cells = [
        (
            f"t{trial.row.number:04d}",
            f"{min(trial.row.epochs + 1, trial.epochs)}/{trial.epochs}",
            _speed(trial),
            "" if trial.seconds_left is None else duration(trial.seconds_left),
            "-" if trial.row.metric is None else f"{trial.row.metric:.4f}",
            _memory(trial),
        )
        for trial in trials
    ]
    headers = ("running", "epoch", "img/s", "to its end", metric if wide else "best", "memory")
    count = len(headers) if wide else len(headers) - 1
    widths = [max(len(headers[i]), *(len(row[i]) for row in cells)) for i in range(count)]
    bar = max(LEAST_BAR, min(MOST_BAR, width - sum(widths) - 2 * len(widths)))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index in range(count):
        table.add_column(headers[index], no_wrap=True, min_width=widths[index])
        if index == 1:
            table.add_column("", no_wrap=True, min_width=bar, max_width=bar)
    for trial, row in zip(trials, cells, strict=True):
        shown: list[Text | ProgressBar] = [Text(text) for text in row[:count]]
        shown[0].stylize("cyan") if isinstance(shown[0], Text) else None
        shown.insert(2, _bar(trial, bar))
        table.add_row(*shown)
    return table


def _bar(trial: RunningTrial, width: int) -> Text | ProgressBar:
    """The part of the epoch that is trained; what the trial does instead, if that is the whole story."""
    if trial.progress is not None and trial.progress.phase == "training":
        return ProgressBar(total=1.0, completed=trial.share, width=width)
    return Text(trial.phase[:width], style="dim")


def _speed(trial: RunningTrial) -> str:
    speed = None if trial.progress is None else trial.progress.images_per_second
    return "" if speed is None else f"{speed:.3g}"


def _memory(trial: RunningTrial) -> str:
    used = None if trial.progress is None else trial.progress.memory_bytes
    used = used or trial.row.peak_memory_bytes
    device = "" if trial.progress is None or not trial.progress.device else f" {trial.progress.device}"
    return f"{used / 2**30:.1f} GiB{device}" if used else ""
