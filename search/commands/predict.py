"""Predict images with a trained model: ``python -m search.commands.predict STUDY IMAGES --to labels --out DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import run_command, say
from cellseg.inference.outputs.options import (
    add_output_options,
    find_images,
    is_results_form,
    model_problem,
    write_listed,
    write_outputs,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.predict", description=__doc__)
    add_output_options(parser, "name of a study, for its best trial; or the folder of a checkpoint or exported model")
    parser.add_argument("--trial", type=int, metavar="N", help="of a study: predict with trial N; default: the best")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="folder of all studies; default: results"
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    is_results = is_results_form(arguments)
    images = [] if is_results else find_images(arguments)
    folder = _find_model(arguments)

    from cellseg.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    if is_results:
        root, out = map(Path, arguments.inputs)
        return write_listed(checkpoint, root, out, arguments.device)
    return write_outputs(checkpoint, images, arguments)


def _find_model(arguments: argparse.Namespace) -> Path:
    """The checkpoint folder that MODEL means: a checkpoint, an exported model, or the chosen trial of a study."""
    from cellseg.checkpoint import find_checkpoint, has_checkpoint
    from search.storage.find import list_studies
    from search.storage.kept import choose_trial, kept_checkpoint
    from search.storage.store import StudyStore

    path = Path(arguments.model)
    if not StudyStore.exists(path) and path.is_dir() and has_checkpoint(found := find_checkpoint(path)):
        return found
    places = [path, *([arguments.results / path] if path.name == arguments.model else [])]
    for place in places:
        if StudyStore.exists(place):
            store = StudyStore.open(place)
            row = choose_trial(store, arguments.trial)
            value = "" if row.metric is None else f", validation {store.metric} {row.metric:.4f}"
            say(f"study {store.name}, trial t{row.number:04d}{value}")
            return kept_checkpoint(store, row.number)
    studies = [f"the study {store.name}" for store in list_studies(arguments.results)[:5]]
    raise model_problem(
        arguments.model, f"a folder with a checkpoint or an exported model, or a study in {arguments.results}", studies
    )


if __name__ == "__main__":
    sys.exit(main())
