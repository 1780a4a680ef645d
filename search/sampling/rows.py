"""Which row of a table is trained next."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from search.space import Params

if TYPE_CHECKING:
    from search.sampling.sampler import Outcome


class RowSampler:
    """Asks for every run of a table once, in order; there is nothing to learn from how the others fared.

    It has the calls of :class:`search.sampling.sampler.StudySampler`.

    Args:
        runs: the params of every run, no two equal.
    """

    def __init__(self, runs: Iterable[Params]):
        self._open = list(runs)

    def ask(self, number: int) -> Params:
        """The params of the first run that was neither asked for nor replayed. There must be one."""
        return self._open.pop(0)

    def prepare(self, count: int) -> bool:
        """Nothing: what is next stands in the table."""
        return False

    def report(self, number: int, epoch: int, value: float) -> None:
        """Nothing."""

    def tell(self, number: int, outcome: "Outcome", value: float | None = None, reason: str | None = None) -> None:
        """Nothing: a run that failed has failed."""

    def replay(
        self,
        number: int,
        params: Mapping[str, Any],
        outcome: "Outcome | None",
        *,
        value: float | None = None,
        epochs: Iterable[tuple[int, float]] = (),
        reason: str | None = None,
    ) -> None:
        """A run of a former command: it is not asked for again."""
        self._open = [run for run in self._open if run != params]
