"""The end of a search whose trials fail one after the other: more would fail too."""

FAILURES_IN_A_ROW, ANY_FAILURES_IN_A_ROW = 3, 10
"""So many trials failing for the same reason, or for any, with none that did not in between, end the search."""
NON_FINITE = "non-finite"
"""The ending of a trial whose loss exploded."""


class FailureWatch:
    """Watches how trials end.

    Args:
        failures_count: a failed trial is a result (:attr:`search.study.experiment.Experiment.failures_count`): the
            search never gives up.
    """

    def __init__(self, failures_count: bool):
        self._failures_count = failures_count
        self._causes: list[str] = []  # of the failures since the last trial that did not fail
        self.reason: str | None = None
        """Why the search gave up; None while it has not."""

    def end(self, ending: str, detail: str, *, failed: bool) -> None:
        """Take in the end of a trial.

        Args:
            ending: its kind, see :data:`search.study.study.OUTCOMES`.
            detail: what there is to say about it; its last line is taken for the cause.
        """
        if not failed or self._failures_count:
            self._causes.clear()
            return
        cause = detail.strip().splitlines()[-1] if detail.strip() else ending
        self._causes.append(cause)
        last = self._causes[-FAILURES_IN_A_ROW:]
        # A loss that explodes is a trial's own: neighbours with a smaller learning rate may train well.
        if ending != NON_FINITE and len(last) == FAILURES_IN_A_ROW and len(set(last)) == 1:
            self.reason = f"{FAILURES_IN_A_ROW} trials in a row ended as '{ending}': {cause}"
        elif len(self._causes) >= ANY_FAILURES_IN_A_ROW:
            self.reason = f"{ANY_FAILURES_IN_A_ROW} trials in a row failed, the last as '{ending}': {cause}"
