"""Import annotations of another tool: ``python -m cellseg.data.import_labels SOURCE DEST``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.data.reading_options import add_reading_options, config_from
from cellseg.names import counted

EPILOG = """
The folder DEST gets images/ and annotations.json (COCO, masks as run lengths), and test images where SOURCE has a split
of them beside that for training. check and run take DEST as --data. Formats: Cellpose, StarDist, label images,
labelme, QuPath (GeoJSON), ImageJ (ROI), YOLO, CVAT (XML), VGG Image Annotator, COCO; docs/data.md says what each
loses.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cellseg.data.import_labels",
        description="Write the annotations of another tool as a data set in the COCO layout.",
        epilog=EPILOG,
    )
    add_reading_options(parser, root="SOURCE")
    parser.add_argument("dest", metavar="DEST", type=Path, help="folder to write; it must not hold anything")
    parser.add_argument(
        "--masks",
        metavar="PATTERN",
        help="label images: where that of an image lies below SOURCE, as 'masks/{name}.png' or '{name}_{class}.tif'",
    )
    parser.add_argument(
        "--class-name", metavar="NAME", help="class of cells for which the files name none; default: cell"
    )
    parser.add_argument(
        "--class-key", metavar="KEY", help="property that holds the class, where a file has several (VIA, GeoJSON, ROI)"
    )
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.data.dataset import open_dataset
    from cellseg.data.importing.options import DEFAULT_CLASS, ImportOptions
    from cellseg.data.importing.write import write_dataset

    options = ImportOptions(arguments.masks, arguments.class_name or DEFAULT_CLASS, arguments.class_key)
    dataset = open_dataset(config_from(arguments), None if options == ImportOptions() else options)
    for note in dataset.notes:
        say(f"note: {note}")
    done = write_dataset(dataset, arguments.dest, _show_progress if sys.stderr.isatty() else None)
    empty = f", {done.empty_images} of them without cells" if done.empty_images else ""
    say(f"{arguments.dest}: from {dataset.layout}, {counted(done.images, 'image')}{empty}")
    for name, count in done.cells_of_class.items():
        say(f"  {name}: {counted(count, 'cell')}")
    if done.test_images:
        say(f"  {counted(done.test_images, 'test image')}")
    say(f"Next: python -m cellseg.data.check {arguments.dest}")
    return EXIT_OK


def _show_progress(done: int, total: int) -> None:
    sys.stderr.write(f"\r{done} of {counted(total, 'image')}" if done < total else "\r\033[K")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
