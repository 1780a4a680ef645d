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
    write_listed,
    write_outputs,
)
from search.storage.find_model import MODEL_HELP, find_model
from search.storage.remote import reading_folder
from search.storage.results_option import add_results_option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.predict", description=__doc__)
    add_output_options(parser, MODEL_HELP)
    parser.add_argument("--trial", type=int, metavar="N", help="of a study: predict with trial N; default: the best")
    add_results_option(parser)
    return parser


def _command(arguments: argparse.Namespace) -> int:
    is_results = is_results_form(arguments)
    images = [] if is_results else find_images(arguments)
    folder, line = find_model(arguments.model, arguments.trial, reading_folder(arguments.results))
    if line is not None:
        say(line)

    from cellseg.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    if is_results:
        root, out = map(Path, arguments.inputs)
        return write_listed(checkpoint, root, out, arguments.device)
    return write_outputs(checkpoint, images, arguments)


if __name__ == "__main__":
    sys.exit(main())
