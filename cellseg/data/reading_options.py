"""Command-line options that say how a data set is read."""

import argparse

from cellseg.config import DataConfig


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add ROOT and the options that become fields of ``DataConfig``."""
    parser.add_argument("root", metavar="ROOT", help="folder of the data set")
    parser.add_argument(
        "--layout",
        choices=("auto", "release", "coco"),
        default="auto",
        help="how the files are arranged; default: auto",
    )
    parser.add_argument(
        "--instances",
        choices=("ids", "components"),
        default="ids",
        help="what a class map of the release layout holds; default: ids",
    )
    parser.add_argument("--annotations", metavar="FILE", help="COCO layout: the annotation file, relative to ROOT")


def config_from(arguments: argparse.Namespace) -> DataConfig:
    """Build the ``DataConfig`` that :func:`add_reading_options` describes."""
    return DataConfig(
        root=arguments.root,
        layout=arguments.layout,
        instances=arguments.instances,
        annotations=arguments.annotations,
    )
