"""Send a search to a Ray cluster, where it goes on without this machine: ``python -m search.commands.submit SPACE.yaml
--address http://HEAD:8265 --results /shared/results``.

The same command continues the study.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, named, run_command, say
from cellseg.errors import Problem, raise_all
from search.study.options import add_study_options, experiment_of, study_name, study_words

if TYPE_CHECKING:
    from search.study.experiment import Experiment


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.submit", description=__doc__)
    add_study_options(parser)
    parser.add_argument(
        "--address",
        required=True,
        metavar="ADDR",
        help="the cluster: http://HOST:8265 of its dashboard, HOST:PORT of its head, or auto on one of its machines",
    )
    parser.add_argument(
        "--results",
        required=True,
        metavar="DIR",
        help="folder of all studies: an absolute path that all machines of the cluster see",
    )
    parser.add_argument(
        "--send-code",
        action="store_true",
        help="also send this package as it is here; default: that of the machines, which must be the same on all",
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from search.space.shipped import find_space
    from search.storage.find import check_name

    arguments.space = find_space(arguments.space)
    experiment = experiment_of(arguments)
    name = study_name(arguments)
    check_name(name)
    raise_all(_problems(experiment, arguments))

    from search.cluster.jobs import Jobs, Order

    command = f"python -m search.commands.submit {shlex.join(arguments.argv)}"
    order = Order(
        study=name,
        space=arguments.space,
        results=str(PurePosixPath(arguments.results)),
        words=tuple(study_words(arguments)),
        command=named(command),
        with_code=arguments.send_code,
    )
    job = Jobs(arguments.address).submit(order)
    where = f"--address {shlex.quote(arguments.address)}"
    say(f"Submitted study {name} as {job.id}. It runs on the cluster; you may close this terminal.")
    say(f"Follow it:   python -m search.commands.logs --follow {job.id} {where}")
    say(f"All studies: python -m search.commands.jobs {where}")
    say(f"Stop it:     python -m search.commands.stop {job.id} {where}")
    return EXIT_OK


def _problems(experiment: "Experiment", arguments: argparse.Namespace) -> Iterator[Problem]:
    """Report paths that mean something on this machine only, and stages that no trial could train."""
    from search.study.possible import named_paths, untrained_stages

    if not _is_absolute(arguments.results):
        yield _not_there("--results", arguments.results, "Give the folder of a disk that all machines share.")
    remedy = "Copy the data to a disk of the cluster and give their path there."
    if arguments.data is not None:
        if not _is_absolute(str(arguments.data)):
            yield _not_there("--data", str(arguments.data), remedy)
    elif experiment.data is None:
        yield Problem("--data", "a data set must be named", "neither the option nor data in the file", remedy)
    elif experiment.data.root is not None and not _is_absolute(experiment.data.root):
        yield _not_there(f"{arguments.space}: data.root", experiment.data.root, remedy)
    for path in named_paths(experiment):
        if not _is_absolute(path):
            remedy = "Copy the weights to a disk that all machines share and give their path there."
            yield _not_there(f"{arguments.space}: model.weights", path, remedy)
    yield from untrained_stages(experiment)


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute()  # of the cluster, whose machines run Linux


def _not_there(where: str, path: str, remedy: str) -> Problem:
    got = f"'{path}', which is relative to a folder of this machine"
    return Problem(where, "must be an absolute path on the cluster", got, remedy)


if __name__ == "__main__":
    sys.exit(main())
