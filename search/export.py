"""Export a trial's predictions for the test images: ``python -m search.export --best``."""

import argparse
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.files import atomic_path

if TYPE_CHECKING:
    from search.storage.store import StudyStore, TrialRow

ARCHIVED_NAME = "test-results.json"
"""What leaderboards expect at the archive's root."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.export", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--best", action="store_true", help="the trial that the study ranks first")
    which.add_argument("--trial", type=int, metavar="N", help="a trial by its number")
    parser.add_argument("--study", metavar="NAME", help="default: the study that was written last")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set of the test images; default: the study's")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument("--out", type=Path, default=Path(ARCHIVED_NAME), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--zip", action="store_true", help=f"also write FILE.zip with {ARCHIVED_NAME} at its root")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU where there is one")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.data.testset import describe_absent, read_test_list
    from search.storage.store import find_study

    store = find_study(arguments.results, arguments.study)
    images = read_test_list(arguments.data or Path(store.study["data_root"]))
    row = choose_trial(store, arguments.trial)

    # Torch takes seconds to import: what can be wrong without it was told before.
    from rich.progress import Progress

    from cellseg.checkpoint import open_checkpoint
    from cellseg.device import pick_device
    from cellseg.inference.results import write_results
    from cellseg.training.run import BEST

    checkpoint = open_checkpoint(store.checkpoint_folder(row.number) / BEST)
    info = checkpoint.info
    say(
        f"study {store.study['name']}, trial t{row.number:04d}: validation {info.metric} {info.value:.4f} "
        f"in epoch {info.epoch}, weights {info.weights_blake2b[:12]}"
    )
    device = pick_device(arguments.device)
    with Progress(transient=True) as progress:
        bar = progress.add_task("predicting", total=len(images))
        count = write_results(
            checkpoint,
            images,
            arguments.out,
            device=device,
            on_image=lambda done, _: progress.update(bar, completed=done),
        )
    if missing := describe_absent(images):
        say(missing)
    num_predicted = sum(image.path is not None for image in images)
    say(f"{arguments.out}: {count} detections on {num_predicted} images, read back with pycocotools")
    if arguments.zip:
        say(f"{write_archive(arguments.out)}: {ARCHIVED_NAME} at its root")
    return EXIT_OK


def choose_trial(store: "StudyStore", number: int | None) -> "TrialRow":
    """The trial with that number, or the best one.

    Raises:
        UserError: no such trial, none with a value, or its checkpoint was not kept.
    """
    best = store.best_trials(1)
    rows = best if number is None else [row for row in store.trials() if row.number == number]
    if not rows:
        wanted = "a trial with a value" if number is None else f"a trial {number}"
        raise UserError(f"{store.folder}: must hold {wanted}, but got none. Run the search first.")

    from cellseg.checkpoint import has_checkpoint
    from cellseg.training.run import BEST

    row = rows[0]
    if not has_checkpoint(store.checkpoint_folder(row.number) / BEST):
        kept = [r.number for r in store.trials() if has_checkpoint(store.checkpoint_folder(r.number) / BEST)]
        raise UserError(
            f"--trial {row.number}: its checkpoint must have been kept, but got those of {kept} only. "
            "Choose one of them; `keep` in the space says how many stay."
        )
    return row


def write_archive(results: Path) -> Path:
    """``results`` as a zip archive beside it; its path."""
    archive = results.with_suffix(".zip")
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(results, ARCHIVED_NAME)
    return archive


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
