"""Command-line options that say how a data set is read."""

import argparse
from typing import get_args

from cellseg.config import DataConfig
from cellseg.config.data import Layout


def add_reading_options(parser: argparse.ArgumentParser, root: str = "ROOT") -> None:
    """Add ROOT, under the name that its command gives it, and the options that become fields of ``DataConfig``."""
    parser.add_argument("root", metavar=root, help="folder of the data set")
    parser.add_argument(
        "--layout",
        choices=get_args(Layout),
        default="auto",
        help="how the files are arranged, or the tool that wrote them; default: auto",
    )
    parser.add_argument(
        "--instances",
        choices=("ids", "components"),
        default="ids",
        help="what a mask file holds: a value for each cell, or cells that do not touch; default: ids",
    )
    parser.add_argument("--annotations", metavar="FILE", help="COCO layout: the annotation file, relative to ROOT")
    parser.add_argument(
        "--channels", metavar="R,G,B", help="channels that become red, green and blue, from 1; 0 for none; one for grey"
    )
    parser.add_argument("--projection", choices=("max", "mean", "middle"), help="how z-stacks become flat")


def config_from(arguments: argparse.Namespace) -> DataConfig:
    """Build the ``DataConfig`` that :func:`add_reading_options` describes.

    Raises:
        UserError: values that no config has.
    """
    from cellseg.config import TrialConfig

    names = ("root", "layout", "instances", "annotations", "channels", "projection")
    return TrialConfig.from_flat({f"data.{name}": getattr(arguments, name) for name in names}, "options").data
