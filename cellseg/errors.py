"""The one error that a user can cause and fix, and the one warning. Anything else that is raised is a bug in this
package."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the user's input; as text ``where: law, but got evidence. Remedy.``"""

    where: str
    """A file, key or option, the outermost first. Empty where the finder doesn't know: the caller adds it."""
    law: str
    """The rule that is broken."""
    got: str
    """The offending value or state."""
    remedy: str = ""
    """The fix, in whole sentences. Empty if the rule implies it."""

    def within(self, where: str) -> "Problem":
        """Return the same problem with ``where`` before its own place."""
        return replace(self, where=f"{where}: {self.where}" if self.where else where)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{where}{self.law}, but got {self.got}.{remedy}"


class UserError(ValueError):
    """One or more problems with the user's input, each on a line of its own.

    Loaders collect every problem of one input and raise once. Commands print the lines and exit with status 2.
    """

    def __init__(self, *problems: Problem | str):
        """``problems``: objects, or lines that already have the form of :class:`Problem`."""
        if not problems:
            raise AssertionError("a UserError needs at least one problem")
        self.problems: tuple[str, ...] = tuple(map(str, problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple:
        # Exceptions travel between processes (Ray, DataLoader workers); the default would join the lines into one.
        return type(self), self.problems


class Notice(UserWarning):
    """What a user should know although nothing keeps the work from being done. Commands print it as one line."""


class RuleError(ValueError):
    """Broken rules of a settings class. Pydantic takes one error from a validator; this one carries all problems."""

    def __init__(self, *problems: Problem):
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def raise_all(problems: Iterable[Problem | str]) -> None:
    """Raise one :class:`UserError` with every problem, or return if there is none."""
    found = tuple(problems)
    if found:
        raise UserError(*found)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without the advice or the traceback that follows."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
