"""Predict the test images of a data set: ``python -m cellseg.predict CHECKPOINT ROOT OUT.json``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellseg.predict", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint folder")
    parser.add_argument(
        "root", metavar="ROOT", type=Path, help="data set with test_release/ and test_image_name_to_ids.json"
    )
    parser.add_argument("out", metavar="OUT.json", type=Path, help="COCO results file to write")
    parser.add_argument("--device", default=None, help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.checkpoint import open_checkpoint
    from cellseg.data.testset import describe_absent, read_test_list
    from cellseg.device import pick_device
    from cellseg.inference.results import write_results

    checkpoint = open_checkpoint(arguments.checkpoint)
    images = read_test_list(arguments.root)
    count = write_results(checkpoint, images, arguments.out, device=pick_device(arguments.device))
    if missing := describe_absent(images):
        say(missing)
    num_predicted = sum(image.path is not None for image in images)
    say(f"{arguments.out}: {count} detections on {num_predicted} images")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
