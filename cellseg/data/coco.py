"""Write any data set as one COCO annotation file: ``python -m cellseg.data.coco ROOT OUT.json``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.data.reading_options import add_reading_options, config_from
from cellseg.names import counted


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cellseg.data.coco", description="Write the annotations of a data set as one COCO JSON."
    )
    add_reading_options(parser)
    parser.add_argument("out", metavar="OUT.json", type=Path, help="the file to write")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.data.coco_export import write_coco
    from cellseg.data.dataset import open_dataset

    dataset = open_dataset(config_from(arguments))
    count = write_coco(dataset, arguments.out)
    say(
        f"{arguments.out}: {counted(len(dataset.sources), 'image')}, {counted(count, 'cell')}, "
        f"{counted(len(dataset.class_names), 'class', plural='classes')}"
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
