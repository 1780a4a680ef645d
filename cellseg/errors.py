"""The one error a user can cause and mend. Everything else that is raised is a bug of ours."""

from collections.abc import Iterable


class UserError(ValueError):
    """One or more problems with what the user gave us, each a line ``where: law, but got evidence. Remedy.``

    Loaders collect every problem of one input and raise once. Commands print the lines and exit with status 2.
    """

    def __init__(self, *problems: str):
        if not problems:
            raise AssertionError("a UserError needs at least one problem")
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems

    def __reduce__(self) -> tuple:
        # Exceptions travel between processes (Ray, DataLoader workers); the default would re-split the text.
        return type(self), self.problems


def raise_all(problems: Iterable[str]) -> None:
    """Raise one :class:`UserError` with every problem, or return if there is none."""
    found = tuple(problems)
    if found:
        raise UserError(*found)


def first_line(error: BaseException) -> str:
    """What went wrong, without the advice or the traceback that follows."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
