"""The calls between a study and what proposes its trials: any sampler answers these."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Protocol

from search.space import Params


class Outcome(StrEnum):
    """Ending of a trial."""

    COMPLETE = "COMPLETE"
    """Trained to its end."""
    PRUNED = "PRUNED"
    """Stopped because others were better."""
    FAILED = "FAILED"
    """Ended by an error or a loss that is not finite; says nothing about its config."""
    INFEASIBLE = "INFEASIBLE"
    """Does not fit into memory, and neither will its neighbours."""


class Sampler(Protocol):
    """Proposes params for numbered trials and learns how they fared.

    A study calls :meth:`ask` once per trial, :meth:`report` after its epochs and :meth:`tell` at its end. Trials of an
    earlier run are entered with :meth:`replay`, before the first :meth:`ask`. The same calls with the same seed must
    give the same proposals.
    """

    def ask(self, number: int) -> Params:
        """Return the params of a new trial: a value for every active key, and for no other."""

    def prepare(self, count: int) -> bool:
        """Use a pause to work ahead: make one of the next ``count`` proposals that is missing or outdated.

        Returns:
            Whether there was one to make.
        """

    def report(self, number: int, epoch: int, value: float) -> None:
        """Take in the objective of a running trial after an epoch; finite. A repeated epoch is ignored."""

    def tell(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """Take in the end of a running trial.

        Args:
            value: the best objective, for COMPLETE only.
            reason: one line for people.
        """

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
        """Enter a trial of an earlier run.

        Args:
            outcome: how it ended, or None for a trial that continues and will be told about.
            value: as in :meth:`tell`.
            epochs: (epoch, objective) of its reports; values that are not finite are left out.
        """
