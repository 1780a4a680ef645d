"""Export a study for Optuna's own tools: ``python -m search.optuna_export``, then ``optuna-dashboard optuna.log``.

Only the study's tables are read: it may be running, and is shown as it is at that moment.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.files import atomic_path
from cellseg.names import counted
from search.storage.results_option import add_results_option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.optuna_export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", metavar="NAME", help="default: the most recent study")
    add_results_option(parser)
    parser.add_argument("--out", type=Path, default=Path("optuna.log"), metavar="FILE", help="default: %(default)s")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.find import find_study
    from search.storage.remote import reading_folder

    store = find_study(reading_folder(arguments.results), arguments.study)

    from optuna.logging import WARNING, set_verbosity
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from search.views.optuna_study import optuna_study

    set_verbosity(WARNING)
    with atomic_path(arguments.out) as path:
        count = len(optuna_study(store, JournalStorage(JournalFileBackend(str(path)))).trials)
    say(
        f"{arguments.out}: {counted(count, 'trial')} of study '{store.name}'. "
        f"Show them: optuna-dashboard {arguments.out}"
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
