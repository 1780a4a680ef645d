"""The common part of all commands of cellseg and search: parsing, and how they end."""

import argparse
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from cellseg.errors import Notice, UserError

EXIT_OK, EXIT_BUG, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130

_SPELLINGS: ContextVar[Mapping[str, str]] = ContextVar("spellings")


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv``, run ``command``, and return the exit status.

    A :class:`UserError` becomes one line a problem on standard error and status 2; Ctrl-C becomes status 130. Anything
    else is a bug: a line on standard error, its traceback in a file, and status 1. ``--debug``, which every command
    has, shows the traceback of a UserError too, and lets a bug through as it is.

    The command finds the words that were typed behind its name in ``arguments.argv``.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.prog, parser.description = named(parser.prog), named(parser.description or "").replace("``", "")
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words, argparse.Namespace(argv=words))
    try:
        with _plain_notices():
            return command(arguments)
    except UserError as error:
        if arguments.debug:
            traceback.print_exc()
        for problem in error.problems:
            print(f"error: {spell(problem)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`... | head`): nothing is wrong, and nobody listens any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        if error.filename is None:
            return _tell_bug(error, parser.prog, arguments)
        # A path that no check foresaw: a name that is too long, a folder without permission.
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error.filename}: must be usable, but got '{error.strerror}'. Check the path.", file=sys.stderr)
        return EXIT_USER_ERROR
    except Exception as error:
        return _tell_bug(error, parser.prog, arguments)


def _tell_bug(error: Exception, program: str, arguments: argparse.Namespace) -> int:
    """Say in a line what went wrong, where the traceback is and what to do with it; the exit status. Called where the
    error was caught."""
    from cellseg import __version__

    if arguments.debug:
        raise error
    text = "\n".join(
        [
            f"command: {program} {shlex.join(arguments.argv)}",
            f"cellseg-search {__version__}, Python {platform.python_version()}, {platform.platform()}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    said = (str(error).strip() or "no message").splitlines()[0]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cellseg-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError:  # nowhere to write: then the traceback goes where the line goes
        print(text, file=sys.stderr)
        where = "above"
    else:
        where = f"in {file.name}"
    print(
        f"error: {type(error).__name__}: {said}. This is a bug of cellseg-search; its traceback is {where}. "
        "Please report it with that text, as CONTRIBUTING.md says; --debug shows it here.",
        file=sys.stderr,
    )
    return EXIT_BUG


@contextmanager
def _plain_notices() -> Iterator[None]:
    """Print a :class:`Notice` as a line for people, without the place in the code."""
    former = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, Notice):
            print(f"warning: {spell(str(message))}", file=sys.stderr)
        else:
            former(message, category, *place, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = former


def say(text: str = "", *, here: bool = True) -> None:
    """Print a line of a command's result at once, also through a pipe.

    Args:
        here: whether its commands are for this shell. If not, they stay as they are.
    """
    print(spell(text) if here else text, flush=True)


@contextmanager
def spelled(spellings: Mapping[str, str]) -> Iterator[None]:
    """Let commands call themselves, and each other, by other names for the time of the block.

    Args:
        spellings: module of a command -> what its user types, such as ``search.run`` -> ``cellseg-search run``.
    """
    token = _SPELLINGS.set(spellings)
    try:
        yield
    finally:
        _SPELLINGS.reset(token)


def named(text: str) -> str:
    """``text`` with every ``python -m MODULE`` under the name that :func:`spelled` gave it; elsewhere as it is."""
    spellings = _SPELLINGS.get({})
    return re.sub(r"python -m (\w+(?:\.\w+)*)", lambda match: spellings.get(match[1], match[0]), text)


def spell(text: str) -> str:
    """``text`` with every command as it works in the shell that started this process.

    Commands have their names (:func:`named`), and programs of this environment that the shell would not find, or find
    elsewhere, their paths: ``.venv/bin/python -m search.run`` where nobody activated ``.venv``.
    """
    return _PROGRAMS.sub(lambda match: own_program(match[0]), named(text))


_PROGRAMS = re.compile(
    r"(?<![\w./-])"
    r"(?:python(?= -m (?:cellseg|search)\b)|cellseg-search(?= [a-z])|ray(?= get-auth-token)|optuna-dashboard(?= ))"
)
"""Names of programs where they begin a command for this machine."""


def own_program(name: str) -> str:
    """Return a program of this process's environment as a shell here finds it: by its name, or else by its path.

    Below the working folder the path is relative. A program that is not installed keeps its name.
    """
    folder = Path(sys.executable).parent
    found = shutil.which(name)
    if found is not None and Path(found).parent.absolute() == folder:
        return name
    path = Path(sys.executable) if name == "python" else folder / name
    if not path.exists():
        return name
    inside = path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if inside else path))
