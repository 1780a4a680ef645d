"""The option that says where the studies are: the same in every command that reads or writes one."""

import argparse
import shlex

RESULTS = "results"


def add_results_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--results``, the folder of all studies or its address in an object store, to a command."""
    parser.add_argument(
        "--results",
        default=RESULTS,
        metavar="DIR",
        help="folder of all studies, or s3://BUCKET/PREFIX; default: %(default)s",
    )


def results_words(results: str) -> str:
    """Return the words, led by a space, that name ``results`` in a printed command; empty for the default."""
    return "" if results == RESULTS else f" --results {shlex.quote(results)}"
