"""Fetch the pretrained weights that a space can ask for: ``python -m search.commands.weights SPACE``.

On a machine with a network, ``--to DIR`` makes a folder to copy to one without.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, EXIT_USER_ERROR, run_command, say
from cellseg.errors import UserError
from cellseg.names import counted
from search.storage.results_option import add_results_option

if TYPE_CHECKING:
    from search.study.weights import Place


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.weights", description=__doc__)
    parser.add_argument(
        "space", type=Path, metavar="SPACE", help="YAML file of a space or an ablation, or the name of a shipped one"
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="put all files into this folder; default: fetch missing ones to the cache",
    )
    parser.add_argument(
        "--check", action="store_true", help="fetch nothing: list the files and check their hashes; status 2 if not all"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for the search itself")
    add_results_option(parser)
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.model.pretrained import cache_folder
    from search.space.shipped import find_space
    from search.storage.find import weights_folder
    from search.storage.remote import working_folder
    from search.study.load import load_experiment
    from search.study.weights import asked_weights, copy_all, fetch_missing, places

    asked = asked_weights(load_experiment(find_space(arguments.space), arguments.set))
    if not asked.files:
        say("No trial of this space starts from published weights.")
        return EXIT_OK
    found = places(asked, arguments.to or weights_folder(working_folder(arguments.results)))
    if not arguments.check:
        found = fetch_missing(found, arguments.to or cache_folder(), say=say)
        if arguments.to is not None:
            copy_all([place for place in found if place.fault is None], arguments.to)
            copied = places(asked, arguments.to)
            found = [place if place.fault else copy for place, copy in zip(found, copied, strict=True)]
    for place in found:
        say(_line(place))
    lacking = [place for place in found if place.path is None or place.fault]
    if lacking and arguments.check:
        say(f"{len(lacking)} of {counted(len(found), 'file')} missing or damaged.")
        return EXIT_USER_ERROR
    if lacking:
        raise UserError(
            f"{arguments.space}: all its weights must be had, but got "
            f"{len(lacking)} of {counted(len(found), 'file')} missing. "
            "Run the same command on a machine with a network; files that came are kept."
        )
    if arguments.to is not None:
        say(
            f"{arguments.to} has all of them: {counted(len(found), 'file')}. Copy its content to results/pretrained "
            "on the machine without a network, or the folder anywhere and set TORCH_HOME to it."
        )
    return EXIT_OK


def _line(place: "Place") -> str:
    if place.path is None:
        size = f"{place.file.megabytes:.0f} MB" if place.file.megabytes else "size unknown"
        return f"missing  {place.file.name} ({size}), the {place.file.of}" + (f": {place.fault}" if place.fault else "")
    state = "damaged" if place.fault else "here   "
    return f"{state}  {place.path}, the {place.file.of}"


if __name__ == "__main__":
    sys.exit(main())
