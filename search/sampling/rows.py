"""The sampler of an ablation: every run once, in order."""

from collections.abc import Iterable, Mapping
from typing import Any

from search.sampling.protocol import Outcome
from search.space import Params


class RowSampler:
    """Asks for every run of an ablation once, in order; there is nothing to learn from how the others fared.

    A :class:`search.sampling.protocol.Sampler`.

    Args:
        runs: the params of every run, no two equal.
    """

    def __init__(self, runs: Iterable[Params]):
        self._open = list(runs)

    def ask(self, number: int) -> Params:
        """Return the params of the first run that was neither asked for nor replayed. There must be one."""
        return self._open.pop(0)

    def prepare(self, count: int) -> bool:
        """Do nothing: the ablation says what is next."""
        return False

    def report(self, number: int, epoch: int, value: float) -> None:
        """Do nothing."""

    def tell(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """Do nothing: a run that failed has failed."""

    def replay(
        self,
        number: int,
        params: Mapping[str, Any],
        outcome: Outcome | None,
        *,
        value: float | None = None,
        epochs: Iterable[tuple[int, float]] = (),
        reason: str | None = None,
    ) -> None:
        """Enter a run of an earlier command: it is not asked for again."""
        self._open = [run for run in self._open if run != params]
