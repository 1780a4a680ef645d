"""Trackers beside a search: each in its own thread, which the search never waits for."""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from queue import SimpleQueue
from time import monotonic, time
from types import ModuleType

from cellseg.errors import Problem, first_line
from search.space.settings import TRACKERS
from search.storage.store import StudyStore
from search.storage.tables import UNFINISHED, EpochRow, TrialRow
from search.views.trackers.tracker import Tracker

CLOSE_SECONDS = 20.0
"""At its end, a search waits so long for all trackers. What is missing then is added when the study is continued."""
_MODULES = {
    "tensorboard": ("tensorboardX", "TensorBoard"),
    "mlflow": ("mlflow", "MLflow"),
    "wandb": ("wandb", "WeightsAndBiases"),
}
"""Name -> the package that it needs, and its class in the module of that name."""
assert set(_MODULES) == set(TRACKERS)


def missing_trackers(names: Sequence[str]) -> Iterator[Problem]:
    """Report the trackers whose packages are not installed."""
    for name in dict.fromkeys(names):
        package, _ = _MODULES[name]
        if find_spec(package) is None:
            remedy = f"Run pip install 'cellseg-search[{name}]', or leave {name} out of track."
            yield Problem("track", f"the package of {name} must be installed", f"no package {package}", remedy)


class Tracking:
    """The trackers of a study that runs.

    Args:
        store: the study's tables, as the search begins: what trackers lack of them is added first.
        names: the trackers, of :data:`search.space.settings.TRACKERS`.
        on_note: told, from another thread, that a tracker failed.
        make: what makes a tracker of its name, in the tracker's thread.
    """

    def __init__(
        self,
        store: StudyStore,
        names: Sequence[str],
        on_note: Callable[[str], None],
        make: Callable[[str, StudyStore], Tracker] | None = None,
    ):
        rows = store.trials()
        names = list(dict.fromkeys(names))
        self.notes: list[str] = []
        """Where the trackers' files or runs are, a line for each."""
        if store.uri is not None and names:
            self.notes.append(f"not tracked, because results are in an object store: {', '.join(names)}")
            names = []
        self.notes += [_module(name).describe(store) for name in names]
        self._feeds = [_Feed(name, store, rows, on_note, make or _make) for name in names]

    def epoch(self, trial: TrialRow, row: EpochRow) -> None:
        """Take in an epoch of a trial, whose row counts it."""
        for feed in self._feeds:
            feed.put((trial, row))

    def end(self, trial: TrialRow) -> None:
        """Take in that a trial has ended."""
        for feed in self._feeds:
            feed.put((trial, None))

    def close(self) -> None:
        """Let trackers finish, for at most :data:`CLOSE_SECONDS`."""
        for feed in self._feeds:
            feed.put(None)
        deadline = monotonic() + CLOSE_SECONDS
        for feed in self._feeds:
            feed.wait(deadline - monotonic())


def _module(name: str) -> ModuleType:
    return import_module(f"search.views.trackers.{name}")


def _make(name: str, store: StudyStore) -> Tracker:
    return getattr(_module(name), _MODULES[name][1])(store)


class _Feed:
    """One tracker with its thread and what waits for it."""

    def __init__(
        self,
        name: str,
        store: StudyStore,
        rows: Sequence[TrialRow],
        on_note: Callable[[str], None],
        make: Callable[[str, StudyStore], Tracker],
    ):
        self._name, self._store, self._rows, self._on_note, self._make = name, store, rows, on_note, make
        self._queue: SimpleQueue[tuple[TrialRow, EpochRow | None] | None] = SimpleQueue()
        self._last: dict[int, int] = {}
        """Open run -> the last epoch that it holds."""
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, item: tuple[TrialRow, EpochRow | None] | None) -> None:
        if not self._has_failed:
            self._queue.put(item)

    def wait(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._on_note(f"{self._name} is behind: what it lacks is added when the study is continued")

    def _run(self) -> None:
        try:
            tracker = self._make(self._name, self._store)
            try:
                self._catch_up(tracker)
                while (item := self._queue.get()) is not None:
                    self._take(tracker, *item)
            finally:
                tracker.close()
        except Exception as error:  # a tool raises whatever it likes, and no search ends for that
            self._has_failed = True
            said = f"{type(error).__name__}: {first_line(error)}"
            self._on_note(f"warning: {self._name} failed, and the search goes on without it ({said})")

    def _take(self, tracker: Tracker, trial: TrialRow, row: EpochRow | None) -> None:
        if trial.number not in self._last:
            self._last[trial.number] = tracker.begin(trial)
        if row is None:
            tracker.end(trial)
            del self._last[trial.number]
        elif row.epoch > self._last[trial.number]:  # a trial that was started again repeats some
            tracker.epoch(row, time())
            self._last[trial.number] = row.epoch

    def _catch_up(self, tracker: Tracker) -> None:
        """Add what the tables know and the tracker does not."""
        ended = tracker.ended()
        lacking = {row.number: row for row in self._rows if row.number not in ended}
        if not lacking:
            return
        # Tables of its own: the search writes to the others meanwhile.
        epochs = StudyStore.open(self._store.folder).epochs_by_trial(lacking)
        for number, trial in lacking.items():
            known = [row for row in epochs.get(number, []) if row.epoch <= trial.epochs]
            if known or trial.state not in UNFINISHED:
                self._last[number] = tracker.begin(trial)
                for row, when in _timed(trial, known):
                    if row.epoch > self._last[number]:
                        tracker.epoch(row, when)
                        self._last[number] = row.epoch
            if trial.state not in UNFINISHED:
                tracker.end(trial)
                del self._last[number]


def _timed(trial: TrialRow, epochs: Sequence[EpochRow]) -> Iterator[tuple[EpochRow, float]]:
    """Every epoch with the time of its end, which tables do not have: as if the trial had never been interrupted."""
    when = datetime.fromisoformat(trial.started).timestamp() if trial.started else time()
    for row in epochs:
        when += row.seconds
        yield row, when
