"""Write a trained model as a folder of its own: ``python -m search.commands.export_model STUDY --to DIR``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from search.storage.find_model import MODEL_HELP, find_model
from search.storage.remote import reading_folder
from search.storage.results_option import add_results_option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.commands.export_model", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--trial", type=int, metavar="N", help="of a study: export trial N; default: the best")
    add_results_option(parser)
    return parser


def _command(arguments: argparse.Namespace) -> int:
    folder, line = find_model(arguments.model, arguments.trial, reading_folder(arguments.results))
    if line is not None:
        say(line)

    from cellseg.checkpoint import open_checkpoint
    from cellseg.inference.export_model import export_model

    export_model(open_checkpoint(folder), arguments.to)
    say(f"{arguments.to}: weights (safetensors), config, classes, normalisation and load.py")
    say("ONNX is left out: tracing would fix what depends on the image, such as the level of each region.")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
