"""Predict images with a trained model: ``python -m cellseg.predict CHECKPOINT IMAGES --to labels --out DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import run_command
from cellseg.inference.outputs.options import (
    add_output_options,
    find_images,
    is_results_form,
    write_listed,
    write_outputs,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellseg.predict", description=__doc__)
    add_output_options(parser, "checkpoint folder, folder of a training run, or exported model")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    is_results = is_results_form(arguments)
    images = [] if is_results else find_images(arguments)

    from cellseg.checkpoint import find_checkpoint, open_checkpoint

    checkpoint = open_checkpoint(find_checkpoint(Path(arguments.model)))
    if is_results:
        root, out = map(Path, arguments.inputs)
        return write_listed(checkpoint, root, out, arguments.device)
    return write_outputs(checkpoint, images, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
