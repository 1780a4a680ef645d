"""Command: ``python -m cellseg.data.synthetic DIR --train N --test M --seed S``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.data.synthetic import generate_dataset
from cellseg.names import counted


def main(argv: Sequence[str] | None = None) -> int:
    """Generate a data set; returns the exit status."""
    return run_command(_parser(), _generate, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cellseg.data.synthetic",
        description="Generate microscope images of four kinds of cells, in the layout of the real data.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="output folder; new or empty")
    parser.add_argument("--train", metavar="N", type=int, required=True, help="training images, at least 1")
    parser.add_argument("--test", metavar="M", type=int, required=True, help="test images, 0 for none")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="same seed, same images (default: 0)")
    parser.add_argument(
        "--size", metavar="PX", type=int, default=128, help="approximate side of an image (default: 128)"
    )
    return parser


def _generate(arguments: argparse.Namespace) -> int:
    folder, train, test = arguments.folder, arguments.train, arguments.test
    generate_dataset(folder, train=train, test=test, seed=arguments.seed, size=arguments.size)
    say(
        f"{folder}: {train} training and {counted(test, 'test image')}; "
        f"the test images' truth is in {folder / 'test_truth.json'}"
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
