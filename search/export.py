"""Export a trial's predictions for the test images: ``python -m search.export --best``."""

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.files import atomic_path
from cellseg.names import counted
from search.storage.results_option import add_results_option

_ARCHIVED_NAME = "test-results.json"
"""The name that leaderboards expect at the archive's root."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search.export", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--best", action="store_true", help="export the best trial of the study")
    which.add_argument("--trial", type=int, metavar="N", help="export trial N")
    which.add_argument(
        "--check", type=Path, metavar="FILE", help="check any results file against the list of test images"
    )
    parser.add_argument("--study", metavar="NAME", help="default: the most recent study")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data set with the test images; default: the study's")
    add_results_option(parser)
    parser.add_argument("--out", type=Path, default=Path(_ARCHIVED_NAME), metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--tta",
        metavar="PARTS",
        help="test-time augmentation: flips, rot90 and scales, comma-separated; flips,rot90 are the eight turns",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="with --best: let the K best kept models predict together"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="choose suppression and mask threshold on the validation images"
    )
    parser.add_argument(
        "--auto", action="store_true", help="try all of these, and leave out what gains nothing in validation"
    )
    parser.add_argument("--max-params", type=int, metavar="N", help="refuse models of more parameters in total")
    parser.add_argument("--zip", action="store_true", help="also write FILE.zip for upload")
    parser.add_argument(
        "--masks",
        action="store_true",
        help="also write label images (TIFF) of the test images into a folder beside FILE, named like it",
    )
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="S", help="for --masks: leave out cells below S; default: 0.5"
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    if arguments.check is not None:
        return _check(arguments)
    from cellseg.data.testset import describe_absent, read_test_list
    from search.storage.best_file import BEST_FILE
    from search.storage.find import find_study
    from search.storage.kept import best_kept, choose_trial, kept_checkpoint
    from search.storage.remote import reading_folder

    store = find_study(reading_folder(arguments.results), arguments.study)
    if not (store.folder / BEST_FILE).exists():  # of a study that ran before there was this file
        with suppress(UserError):  # a folder that may only be read
            store.write_best_config()
    images = read_test_list(arguments.data or Path(store.study["data_root"]))
    row = choose_trial(store, arguments.trial)
    if arguments.top_k is not None and not (arguments.best and arguments.top_k >= 1):
        got = f"--top-k {arguments.top_k}" + ("" if arguments.best else f" with --trial {arguments.trial}")
        raise UserError(f"--top-k: must be at least 1, with --best, but got {got}.")

    # Torch takes seconds to import: whatever can be checked without it was checked above.
    from rich.progress import Progress, track

    from cellseg.checkpoint import open_checkpoint
    from cellseg.device import pick_device
    from cellseg.inference.ensemble import check_parameters, describe_parameters
    from cellseg.inference.results import present_images, write_masks, write_results
    from cellseg.inference.views import with_tta
    from search.levers import AUTO_TOP, AUTO_TTA, Candidate, Levers, assemble, parameters_of

    auto = arguments.auto
    levers = Levers(
        calibrate=arguments.calibrate or auto,
        tta=arguments.tta or (AUTO_TTA if auto else None),
        top=arguments.top_k or (AUTO_TOP if auto and arguments.best else 1),
        auto=auto,
    )
    numbers = [row.number, *(other.number for other in best_kept(store, levers.top) if other.number != row.number)]
    candidates = [
        Candidate(number, open_checkpoint(kept_checkpoint(store, number))) for number in numbers[: levers.top]
    ]
    if auto:  # what it tries is its own choice, so it tries no more than is allowed
        while len(candidates) > 1 and sum(map(parameters_of, candidates)) > (arguments.max_params or math.inf):
            candidates.pop()
    check_parameters(list(map(parameters_of, candidates)), arguments.max_params)
    checkpoint = candidates[0].checkpoint
    info = checkpoint.info
    running = " (still running)" if row.state == "RUNNING" else ""
    say(
        f"study {store.study['name']}, trial t{row.number:04d}{running}: validation {info.metric} {info.value:.4f} "
        f"in epoch {info.epoch}, weights {info.weights_blake2b[:12]}"
    )
    with_tta(checkpoint.config, levers.tta)  # a name that it does not know ends the command here
    present_images(images, arguments.out)  # before the models are loaded
    device = pick_device(arguments.device)
    ensemble = assemble(store, candidates, levers, device, lambda items, text: track(items, text, transient=True))
    say(f"parameters: {describe_parameters(ensemble.parameters)}")
    with Progress(transient=True) as progress:
        bar = progress.add_task("predicting", total=len(images))
        count = write_results(
            checkpoint,
            images,
            arguments.out,
            ensemble=ensemble,
            on_image=lambda done, _: progress.update(bar, completed=done),
        )
    if missing := describe_absent(images):
        say(missing)
    num_predicted = sum(image.path is not None for image in images)
    say(
        f"{arguments.out}: {counted(count, 'detection')} on {counted(num_predicted, 'image')}, "
        "validated with pycocotools"
    )
    if arguments.masks:
        folder = arguments.out.with_suffix("")
        count = write_masks(arguments.out, images, folder, arguments.score)
        say(
            f"{folder}: label images of {counted(count, 'test image')}, "
            f"cells with a score of at least {arguments.score:g}"
        )
    if arguments.zip:
        say(f"{_write_archive(arguments.out)}: {_ARCHIVED_NAME} at its root")
    return EXIT_OK


def _check(arguments: argparse.Namespace) -> int:
    """Check a results file against the test list and the categories of a data set."""
    from cellseg.config import DataConfig, TrialConfig
    from cellseg.data.dataset import open_dataset
    from cellseg.data.testset import read_test_list
    from cellseg.inference.check_results import check_results_file
    from search.storage.find import find_study
    from search.storage.remote import reading_folder

    if arguments.data is not None:
        data = DataConfig(root=str(arguments.data))
    else:
        store = find_study(reading_folder(arguments.results), arguments.study)
        config = json.loads(store.trials()[0].config) if store.trials() else {}
        reading = {key: value for key, value in config.items() if key.startswith("data.")}
        data = TrialConfig.from_flat(reading | {"data.root": store.study["data_root"]}, str(store.folder)).data
    root = Path(str(data.root))
    images = read_test_list(root)
    categories: tuple[int, ...] | None = None
    try:
        categories = open_dataset(data).category_ids
    except UserError:  # there may be test images only
        say(f"note: {root} has no readable annotations: any category id is taken")
    summary = check_results_file(arguments.check, images, categories)
    for line in summary.describe():
        say(line)
    say(f"{arguments.check}: valid for the {len(images)} listed test images of {root}")
    return EXIT_OK


def _write_archive(results: Path) -> Path:
    """Write ``results`` into a zip archive beside it; return the archive's path."""
    archive = results.with_suffix(".zip")
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(results, _ARCHIVED_NAME)
    return archive


if __name__ == "__main__":
    sys.exit(main())
