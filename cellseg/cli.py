"""The common part of all commands of cellseg and search: parsing, and how they end."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from cellseg.errors import UserError

EXIT_OK, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 2, 130


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse ``argv``, run ``command``, and return the exit status.

    A :class:`UserError` becomes one line a problem on standard error and status 2; Ctrl-C becomes status 130. Anything
    else is a bug and keeps its traceback. ``--debug``, which every command has, shows the traceback of a UserError too.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    try:
        return command(arguments)
    except UserError as error:
        if arguments.debug:
            traceback.print_exc()
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
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
            raise
        # A path that no check foresaw: a name that is too long, a folder without permission.
        if arguments.debug:
            traceback.print_exc()
        print(f"error: {error.filename}: must be usable, but got '{error.strerror}'. Check the path.", file=sys.stderr)
        return EXIT_USER_ERROR


def say(text: str = "") -> None:
    """Print a line of a command's result at once, also through a pipe."""
    print(text, flush=True)
