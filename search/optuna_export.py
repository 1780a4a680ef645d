"""A study for Optuna's own tools: ``python -m search.optuna_export``, then ``optuna-dashboard optuna.log``.

Only the study's tables are read: it may be running, and is shown as it is at that moment.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.files import atomic_path

if TYPE_CHECKING:
    import optuna

    from search.storage.store import StudyStore


def optuna_study(store: "StudyStore", storage: "optuna.storages.BaseStorage | None" = None) -> "optuna.Study":
    """A search as an Optuna study of the same name, for ``optuna.visualization`` for one.

    Trials are COMPLETE; PRUNED, by others or, with the constraint ``memory`` violated, for lack of memory; FAIL; or
    RUNNING, interrupted ones too. Intermediate values are the objective of the best epoch so far, by epoch. The user
    attributes are ``trial``, our number, and ``reason``, why it ended.

    Args:
        storage: where it is made; None for memory. It must not hold a study of that name.

    Raises:
        UserError: a table of given configs, which has no space; or a study that this version cannot read.
    """
    import optuna

    from search.sampling.sampler import Outcome, frozen_trial
    from search.space import parse_space

    if "rows" in store.study["space"]:
        raise UserError(
            f"study '{store.name}': must be a search, but got a table of given configs. "
            "python -m search.report shows it."
        )
    space = parse_space(store.study["space"], f"{store.folder}/study.json")
    study = optuna.create_study(study_name=store.name, direction=space.direction, storage=storage)
    epochs = store.epochs_by_trial()
    for row in store.trials():
        is_open = row.state in {"RUNNING", "INTERRUPTED"}
        outcome, value = (None if is_open else Outcome(row.state)), store.objective.trial_value(row)
        if outcome is Outcome.COMPLETE and value is None:
            outcome = Outcome.FAILED  # its cost is not known
        trial = frozen_trial(
            space,
            row.number,
            json.loads(row.params),
            outcome,
            value=value if outcome is Outcome.COMPLETE else None,
            history=store.objective.values_by_epoch(row, epochs.get(row.number, [])),
            reason=row.reason,
        )
        trial.datetime_start = _local_time(row.started)
        trial.datetime_complete = None if is_open else _local_time(row.ended)
        study.add_trial(trial)
    return study


def _local_time(time: str | None) -> datetime | None:
    """Optuna's times have no zone and are local ones."""
    return datetime.fromisoformat(time).astimezone().replace(tzinfo=None) if time else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.optuna_export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", metavar="NAME", help="default: the study that was worked on last")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("optuna.log"), metavar="FILE", help="default: %(default)s")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.storage.store import find_study

    store = find_study(arguments.results, arguments.study)

    from optuna.logging import WARNING, set_verbosity
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    set_verbosity(WARNING)
    with atomic_path(arguments.out) as path:
        count = len(optuna_study(store, JournalStorage(JournalFileBackend(str(path)))).trials)
    say(f"{arguments.out}: {count} trials of study '{store.name}'. Show them: optuna-dashboard {arguments.out}")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
