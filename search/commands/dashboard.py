"""Show a study in optuna-dashboard, on this machine only: ``python -m search.commands.dashboard --study NAME``.

The study may be running: what the page shows follows its tables. Changes made on the page are not kept.
"""

import argparse
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import Problem, UserError
from search.storage.results_option import add_results_option

if TYPE_CHECKING:
    from search.storage.store import StudyStore

HOST, PORT = "127.0.0.1", 8080
REFRESH_SECONDS = 2.0
"""The tables are looked at so often, or less often if that takes a while."""
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.dashboard", description=__doc__)
    parser.add_argument("--study", metavar="NAME", help="default: the most recent study")
    add_results_option(parser)
    parser.add_argument("--port", type=int, metavar="N", help=f"default: {PORT}, or a free one if that is in use")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.find import find_study
    from search.storage.remote import reading_folder
    from search.views.addresses import describe_address

    if find_spec("optuna_dashboard") is None:
        raise UserError(
            Problem(
                "dashboard",
                "needs the package optuna-dashboard",
                "none",
                "Run pip install 'cellseg-search[dashboard]'. Without it, python -m search.report makes a page.",
            )
        )
    warnings.filterwarnings("ignore", module="optuna")  # of importances that rest on few trials, with every request
    results = reading_folder(arguments.results)
    store = find_study(results, arguments.study)
    pages = Pages(store)
    with _server(pages, arguments.port) as server:
        name = store.name
        follower = threading.Thread(target=_follow, args=(pages, lambda: find_study(results, name)), daemon=True)
        follower.start()
        say(f"optuna-dashboard of study '{name}': {describe_address(HOST, server.server_port)}")
        say("It follows the study while it runs. Ctrl-C ends it.")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say()
    return EXIT_OK


class Pages:
    """optuna-dashboard on a copy of the study's tables, which is made anew when they change.

    Raises:
        UserError: an ablation, which Optuna has no form for.
    """

    def __init__(self, store: "StudyStore"):
        self._seen = _signature(store)
        self._application = _application(store)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return self._application(environ, start_response)

    def update(self, store: "StudyStore") -> bool:
        """Show the tables as they are in ``store``; return whether they had changed."""
        if (seen := _signature(store)) == self._seen:
            return False
        self._application, self._seen = _application(store), seen
        return True


def _signature(store: "StudyStore") -> list[tuple[int, str, int]]:
    return [(row.number, row.state, row.epochs) for row in store.trials()]


def _application(store: "StudyStore") -> Application:
    import optuna
    from optuna_dashboard import wsgi

    from search.views.optuna_study import optuna_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    optuna_study(store, storage)
    return wsgi(storage)


def _follow(pages: Pages, read: Callable[[], "StudyStore"]) -> None:
    """Update the pages for ever. What goes wrong in a moment (a disk that is away) may go right in the next."""
    while True:
        began = time.monotonic()
        with suppress(UserError, OSError):
            pages.update(read())
        time.sleep(max(REFRESH_SECONDS, 4 * (time.monotonic() - began)))


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each request tells nobody anything."""


def _server(application: Application, port: int | None) -> WSGIServer:
    """Listen on this machine's own address.

    Raises:
        UserError: a port that was asked for and cannot be had.
    """

    def listen(port: int) -> WSGIServer:
        return make_server(HOST, port, application, server_class=_Server, handler_class=_Quiet)

    try:
        return listen(PORT if port is None else port)
    except (OSError, OverflowError) as error:
        if port is None:
            return listen(0)
        got = f"{port} ({getattr(error, 'strerror', None) or error})"
        raise UserError(Problem("--port", "must be free on this machine", got, "Choose another.")) from error


if __name__ == "__main__":
    sys.exit(main())
