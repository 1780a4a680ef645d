"""The board of a search in the terminal: live on a screen, plain lines in a job's log."""

import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from cellseg.cli import spell
from cellseg.names import counted
from search.storage.tables import TrialRow
from search.storage.trial_logs import log_path
from search.study.failures import headline
from search.views.columns import cut, telling_keys
from search.views.failures import REMEDIES, failure_groups
from search.views.leaderboard import MAX_ROWS, STYLES, leaderboard_table, state_counts
from search.views.running import running_table, running_trials
from search.views.standings import Standings
from search.views.summary import describe_best, describe_cost, describe_pruned

MAX_FAILURES = 3
"""Reasons of failures below the table, the most frequent ones."""
HIGH = 36
"""Lines of a screen that has room for all that."""
UNBOUNDED = 1000
"""Lines of a board that is printed and not shown on a screen."""


class Board:
    """Shows a study while it runs. ``update`` is called after every event.

    Args:
        quiet: show neither a live board nor a line for each event, only what a person should know.
    """

    def __init__(self, study: Standings, console: Console, *, quiet: bool = False):
        self._study = study
        self._console = console
        self._quiet = quiet
        self._started = time.monotonic()
        self._revision = 0
        self._told: dict[int, tuple[str, int]] = {row.number: (row.state, row.epochs) for row in study.rows}
        self.view = BoardView(study, lambda: time.monotonic() - self._started)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the board on the screen for the time of the block; without a screen, nothing."""
        if self._quiet or not self._console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self.render,
            console=self._console,
            refresh_per_second=2,
            transient=True,
            screen=False,
            vertical_overflow="crop",
        ):
            yield

    def update(self) -> None:
        """Print, without a screen, a line for each trial that moved since the last call."""
        if self._quiet or self._console.is_terminal:
            return
        revision, self._revision = self._revision, self._study.store.revision
        for row in self._study.store.changed_since(revision):
            if self._told.get(row.number) != (row.state, row.epochs):
                self._told[row.number] = (row.state, row.epochs)
                self._console.print(self._line(row), soft_wrap=True, highlight=False, markup=False)

    def note(self, text: str) -> None:
        """Print what a person should know, above the board."""
        self._console.print(spell(text), soft_wrap=True, highlight=False, markup=False)

    def wait(self, text: str) -> None:
        """Show what trials wait for until told otherwise; empty: they do no more."""
        self.view.waits_for = text
        if text and (self._quiet or not self._console.is_terminal):
            self.note(text)

    def slots(self, count: int) -> None:
        """Take in how many trials the study may have side by side."""
        self.view.slots = count

    def render(self) -> "BoardView":
        """Return what is shown now."""
        return self.view

    def _line(self, row: TrialRow) -> str:
        value = "" if row.metric is None else f"  best {self._study.experiment.metric} {row.metric:.4f}"
        reason = f"  ({headline(row.reason)})" if row.reason else ""
        if row.state == "FAILED" and (log := log_path(self._study.store.folder, row.number)).exists():
            reason += f"  log {log}"
        if row.state in {"FAILED", "INFEASIBLE"} and row.ending in REMEDIES:
            reason += f"  try: {REMEDIES[row.ending]}"
        epochs = f"{row.epochs}/{self._study.experiment.epochs}"
        return f"t{row.number:04d}  {row.state.lower():<11}  epoch {epochs}{value}{reason}"


class BoardView:
    """The board as it is at the moment in which it is drawn, in the width and height that there are.

    What matters most stays when room is short: the header, the best, what stops or waits, one running trial, then the
    leaderboard, failures and the others that run.

    Args:
        seconds: since the search began.
    """

    def __init__(self, study: Standings, seconds: Callable[[], float]):
        self._study, self._seconds = study, seconds
        self.waits_for = ""
        """What trials wait for, in words."""
        self.slots: int | None = None
        """Trials that the study may have side by side; None: not known, as many as run."""
        self._keys: list[str] = []
        self._keys_of = -1  # number of ended trials that the order of the keys is made from

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        study, width = self._study, options.max_width
        height = options.height or (console.height if console.is_terminal else UNBOUNDED)
        rows, running = study.rows, running_trials(study)
        head = [*self._header(rows, len(running), width)]
        tail = self._tail(rows, width, most=MAX_FAILURES if height >= HIGH else 1)
        # On a low screen one running trial, with its line of headers, comes before what ended.
        tail = tail[: max(0, height - len(head) - 1 - (3 if running else 0))]
        head = head[: height - 1]
        room = height - len(head) - len(tail) - 1
        # The table of running trials has a line of headers, and so has the leaderboard.
        shown = running[: max(1, min(len(running), (room - 1) // 2))] if room >= 3 else []
        yield from head
        if shown:
            if len(shown) < len(running):
                shown = shown[: max(1, len(shown) - 1)]
            yield running_table(shown, study.experiment.metric, width)
            room -= len(shown) + 1
            if len(shown) < len(running):
                yield _cut(f"and {len(running) - len(shown)} more run", width, "dim")
                room -= 1
        if room >= 3:
            yield Text("")
            most = min(MAX_ROWS, room - 3)  # the line before, the headers, the caption
            if most > 0 and any(row.state != "RUNNING" for row in rows):
                yield leaderboard_table(study, most, width, self._telling(rows), running=not shown)
        yield from tail

    def _header(self, rows: list[TrialRow], num_running: int, width: int) -> Iterator[Text]:
        study = self._study
        counts = state_counts(rows) or "starting"
        parts = [
            f"{study.name}: {study.num_finished} of {counted(study.experiment.trials, 'trial')}",
            f"({counts})",
            clock(self._seconds()),
        ]
        slots = max(num_running, self.slots or 0)
        if slots > num_running:
            parts.append(f"{slots - num_running} of {slots} slots idle")
        if limits := study.limits.describe():
            parts.append(limits)
        yield from (Text(line, style="bold", no_wrap=True, overflow="ellipsis") for line in flow(parts, width))
        if study.must_stop and study.num_finished < study.experiment.trials:
            yield _cut("Stopping: trials are kept, the same command continues ...", width, "bold yellow")
        elif self.waits_for:
            yield from (Text(line, style="yellow") for line in textwrap.wrap(self.waits_for, width)[:3])
        line = max(8, min(40, width - 64))
        yield from (_cut(text, width) for text in flow(describe_best(study, line).split("  "), width))
        yield _cut(describe_cost(study, slots or 1), width)

    def _tail(self, rows: list[TrialRow], width: int, most: int) -> list[Text]:
        lines = []
        if pruned := describe_pruned(rows):
            lines.append(_cut(pruned, width, STYLES["PRUNED"]))
        groups = failure_groups(rows, self._study.store.folder)
        for group in groups[:most]:
            style = STYLES["FAILED" if group.ending != "out-of-memory" else "INFEASIBLE"]
            last = f"t{group.trials[-1]:04d}"
            text = (
                f"{len(group.trials)} failed as {group.ending} (last {last}){': ' + group.text if group.text else ''}"
            )
            lines.append(_cut(text, width, style))
            logs = spell(f"cellseg-search logs --trial {group.trials[-1]}")
            lines.append(_cut(f"  try: {group.remedy}; {logs}" if group.remedy else f"  {logs}", width, "dim"))
        if others := groups[most:]:
            count = sum(len(group.trials) for group in others)
            lines.append(_cut(f"{count} failed for {len(others)} other reasons", width, STYLES["FAILED"]))
        return lines

    def _telling(self, rows: list[TrialRow]) -> list[str]:
        """The keys, sorted anew when a twentieth more trials have a value."""
        known = sum(row.metric is not None for row in rows)
        if self._keys_of < 0 or known > self._keys_of * 1.05:
            self._keys_of = known
            self._keys = telling_keys(rows, list(self._study.experiment.domains), self._study.experiment.metric)
        return self._keys


def clock(seconds: float) -> str:
    """Write a time as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def flow(parts: Sequence[str], width: int) -> list[str]:
    """Set parts into lines, as many in a line as fit; a part that is longer than a line has one of its own."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 1 + len(part) <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return lines


def _cut(text: str, width: int, style: str = "") -> Text:
    return Text(cut(text, width), style=style, no_wrap=True)
