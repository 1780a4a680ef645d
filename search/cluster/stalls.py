"""Stalls: trials that have stopped to report, told from those whose epochs are long."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

from search.space.settings import StallSettings

REMEMBERED = 200
"""Epochs of all trials that make the study's usual one."""
OWN = 20
"""Epochs of a trial that make its own."""
GAP_SECONDS = 60.0
"""Nobody looked for so long: the driver itself was stopped, and that time counts for nobody."""


class Stalls:
    """Watches the time since each running trial's last sign of life.

    A trial is overdue after ``epochs`` times its usual epoch, and not before ``minutes``. The usual epoch is the median
    of its own, else that of the study; while neither is known, none is overdue. A trial that stalled before is given
    twice as long each time, in case its epochs are just long.

    Args:
        usual: seconds of epochs that earlier runs of the study had.
        clock: seconds since any moment.
    """

    def __init__(
        self, settings: StallSettings, usual: Iterable[float] = (), clock: Callable[[], float] = time.monotonic
    ):
        self._settings = settings
        self._clock = clock
        self._of_all: deque[float] = deque(usual, maxlen=REMEMBERED)
        self._own: dict[int, deque[float]] = {}
        self._since: dict[int, float] = {}
        self._stalled: dict[int, int] = {}
        self._looked = clock()

    def started(self, trial: int) -> None:
        """Take in that a trial's process has started, or has started over."""
        self._since[trial] = self._clock()

    def reported(self, trial: int, seconds: float) -> None:
        """Take in a report.

        Args:
            seconds: that training says the epoch took; 0 for one that only a checkpoint tells of.
        """
        now = self._clock()
        if seconds > 0:
            took = max(seconds, now - self._since.get(trial, now))
            self._own.setdefault(trial, deque(maxlen=OWN)).append(took)
            self._of_all.append(took)
        self._since[trial] = now

    def left(self, trial: int) -> None:
        """Take in that a trial has no process any more: it ended, or lost it."""
        self._since.pop(trial, None)

    def ended(self, trial: int) -> None:
        """Forget a trial."""
        for known in (self._since, self._own, self._stalled):
            known.pop(trial, None)

    def patience(self, trial: int) -> float | None:
        """Return the seconds that a trial may be silent; None while nothing tells how long an epoch is."""
        epochs = self._own.get(trial) or self._of_all
        if not epochs:
            return None
        usual = self._settings.epochs * median(epochs)
        return max(60.0 * self._settings.minutes, usual) * 2 ** self._stalled.get(trial, 0)

    def overdue(self) -> dict[int, float]:
        """Return the trials that are silent for too long, with the seconds. Each is told once."""
        now = self._clock()
        if (gap := now - self._looked) > GAP_SECONDS:
            self._since = {trial: since + gap for trial, since in self._since.items()}
        self._looked = now
        found = {}
        for trial, since in list(self._since.items()):
            patience = self.patience(trial)
            if patience is not None and now - since > patience:
                found[trial] = now - since
                self._stalled[trial] = self._stalled.get(trial, 0) + 1
                del self._since[trial]
        return found
