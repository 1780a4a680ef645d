"""The end of a search whose trials fail one after the other: more would fail too."""

import re
from dataclasses import dataclass

FAILURES_IN_A_ROW, ANY_FAILURES_IN_A_ROW = 3, 10
"""So many trials failing for the same reason, or for any, with none that did not in between, end the search."""
NON_FINITE, INVALID = "non-finite", "invalid"
"""Endings of trials whose loss exploded, and whose own settings cannot be met."""

_EXCEPTION = re.compile(r"([A-Za-z_][\w.]*)(?:: (.*))?")
_PATH = re.compile(r"(?:[A-Za-z0-9_.~-]*/)+[^\s:'\",)]*")
_ADDRESS = re.compile(r"\b(?:0x[0-9a-fA-F]+|[0-9a-fA-F]{12,}|\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?)\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Cause:
    """The kind of a failure: what two trials have in common that failed for the same reason.

    Trials that meet the same problem tell of it in texts that differ: by their folder, by the sizes of their images,
    by the process that died. None of that counts. The numbers of an ``invalid`` trial do: they are its settings, and
    other settings may be fine.
    """

    ending: str
    exception: str
    """Type of the exception of a ``bug``; empty for any other ending."""
    text: str
    """Its text, without paths, addresses and numbers."""

    @classmethod
    def of(cls, ending: str, detail: str) -> "Cause":
        """Tell the cause of a trial's end; see :meth:`FailureWatch.end`."""
        exception, text = "", headline(detail)
        if ending == "bug" and (match := _EXCEPTION.fullmatch(text)) is not None:
            exception, text = match[1], match[2] or ""
        text = _ADDRESS.sub("<address>", _PATH.sub("<path>", text))
        return cls(ending, exception, text if ending == INVALID else _NUMBER.sub("<number>", text))


def headline(detail: str) -> str:
    """Return the line that says what went wrong: of a traceback the one that names the exception, else the last.

    An exception's text may have more lines, with advice that says less.
    """
    lines = detail.strip().splitlines() or [""]
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    after = lines[frames[-1] + 1 :] if frames else []
    return next((line for line in after if not line.startswith(" ")), lines[-1]).strip()


class FailureWatch:
    """Watches how trials end.

    Args:
        failures_count: a failed trial is a result (:attr:`search.study.experiment.Experiment.failures_count`): the
            search never gives up.
    """

    def __init__(self, failures_count: bool):
        self._failures_count = failures_count
        self._causes: list[Cause] = []  # of the failures since the last trial that did not fail
        self.reason: str | None = None
        """Why the search gave up; None while it has not."""

    def end(self, ending: str, detail: str, *, failed: bool) -> None:
        """Take in the end of a trial.

        Args:
            ending: its kind, see :data:`search.study.study.OUTCOMES`.
            detail: what there is to say about it; for a bug the traceback.
        """
        if not failed or self._failures_count:
            self._causes.clear()
            return
        self._causes.append(Cause.of(ending, detail))
        last = self._causes[-FAILURES_IN_A_ROW:]
        shown = headline(detail) or ending
        # A loss that explodes is a trial's own: neighbours with a smaller learning rate may train well.
        if ending != NON_FINITE and len(last) == FAILURES_IN_A_ROW and len(set(last)) == 1:
            self.reason = f"{FAILURES_IN_A_ROW} trials in a row ended as '{ending}': {shown}"
        elif len(self._causes) >= ANY_FAILURES_IN_A_ROW:
            self.reason = f"{ANY_FAILURES_IN_A_ROW} trials in a row failed, the last as '{ending}': {shown}"
