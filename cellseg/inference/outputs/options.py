"""Options of the commands that predict images, and what those commands do."""

import argparse
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.cli import EXIT_OK, say, spell
from cellseg.errors import UserError
from cellseg.names import counted, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress, TaskID

    from cellseg.checkpoint import Checkpoint
    from cellseg.inference.outputs.folder import Options, Summary
    from cellseg.inference.outputs.inputs import Input
    from cellseg.inference.outputs.record import Finished

KINDS = ("labels", "coco", "geojson", "roi", "csv", "overlay")
DEFAULT_KINDS, DEFAULT_OUT = "labels", Path("predictions")
SMALLEST_TILE = 64
TILES_PER_LINE = 16
"""Without a terminal, progress within an image is a line for each so many tiles, or for a twentieth of all."""


def add_output_options(parser: argparse.ArgumentParser, model: str) -> None:
    """Add MODEL, INPUT and the options that say what is written.

    Args:
        model: what MODEL may be.
    """
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="image files, folders or patterns ('slides/**/*.tif'). DATA OUT.json instead writes COCO results of the "
        "test images that the data set DATA lists",
    )
    parser.add_argument("--to", metavar="A,B", help=f"what to write, of {','.join(KINDS)}; default: {DEFAULT_KINDS}")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder to write; default: {DEFAULT_OUT}")
    parser.add_argument(
        "--score",
        type=float,
        metavar="S",
        help="leave out cells below this score; default: 0.5, or the model's threshold if that is higher",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PX",
        help="cut images larger than this into tiles of this side, in pixels of the network's input; 0: never; "
        "default: tiles of 1024 px for images much larger than the model's data.longer_side",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="F",
        help="where an image is cut into tiles: pixels of the network's input per pixel of the image; default: 1",
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")


def is_results_form(arguments: argparse.Namespace) -> bool:
    """Whether the words are MODEL DATA OUT.json.

    Raises:
        UserError: they are, but with options that do not go with them.
    """
    if not arguments.inputs[-1].lower().endswith(".json"):
        return False
    given = [f"--{name}" for name in ("to", "out", "score", "tile") if getattr(arguments, name) is not None]
    if len(arguments.inputs) != 2 or given:
        raise UserError(
            f"{arguments.inputs[-1]}: a results file goes with one data set and no other output, but got "
            f"{len(arguments.inputs) - 1} inputs{''.join(f' and {name}' for name in given)}. For results of any images "
            "use --to coco --out DIR."
        )
    return True


def parse_kinds(text: str) -> tuple[str, ...]:
    """Parse the list of ``--to``.

    Raises:
        UserError: every name that is none, and an empty list.
    """
    from cellseg.errors import raise_all

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"--to: must name what to write ({','.join(KINDS)}), but got nothing.")
    raise_all(unknown_name(name, KINDS, "an output").within("--to") for name in names if name not in KINDS)
    return names


def write_listed(checkpoint: "Checkpoint", root: Path, out: Path, device: str | None) -> int:
    """Write COCO results of the test images that a data set lists; the exit status."""
    from cellseg.data.testset import describe_absent, read_test_list
    from cellseg.device import pick_device
    from cellseg.inference.results import write_results

    images = read_test_list(root)
    count = write_results(checkpoint, images, out, device=pick_device(device))
    if missing := describe_absent(images):
        say(missing)
    num_predicted = sum(image.path is not None for image in images)
    say(f"{out}: {counted(count, 'detection')} on {counted(num_predicted, 'image')}")
    return EXIT_OK


def find_images(arguments: argparse.Namespace) -> "list[Input]":
    """Check the options, before torch is loaded, and find the images that the words name.

    Raises:
        UserError: words or options that are wrong.
    """
    from cellseg.errors import raise_all
    from cellseg.inference.outputs.inputs import find_inputs

    score, tile, scale = arguments.score, arguments.tile, arguments.scale
    problems = []
    if score is not None and not 0 <= score <= 1:
        problems.append(f"--score: must be between 0 and 1, but got {score:g}.")
    if tile is not None and tile != 0 and tile < SMALLEST_TILE:
        problems.append(f"--tile: must be 0 or at least {SMALLEST_TILE} px, but got {tile}.")
    if not 0.01 <= scale <= 100:
        problems.append(f"--scale: must be between 0.01 and 100, but got {scale:g}.")
    found: list[Input] = []
    try:
        parse_kinds(arguments.to or DEFAULT_KINDS)
    except UserError as error:
        problems.extend(error.problems)
    try:
        found = find_inputs(arguments.inputs)
    except UserError as error:
        problems.extend(error.problems)
    raise_all(problems)
    return found


def write_outputs(checkpoint: "Checkpoint", inputs: "list[Input]", arguments: argparse.Namespace) -> int:
    """Predict images, and write what the options name; the exit status.

    Args:
        inputs, arguments: as :func:`find_images` found and checked them.

    Raises:
        UserError: a package is missing, or the folder cannot be written; in the end, every image that failed.
    """
    from cellseg.device import pick_device
    from cellseg.errors import raise_all
    from cellseg.inference.outputs.folder import predict_to_folder

    options = _options(arguments, checkpoint)
    out = arguments.out or DEFAULT_OUT
    say(
        f"{counted(len(inputs), 'image')} to {', '.join(options.kinds)} in {out}, "
        f"cells with a score of at least {options.score:g}"
    )
    with _shown(len(inputs)) as shown:
        summary = predict_to_folder(
            checkpoint,
            inputs,
            out,
            options,
            device=pick_device(arguments.device),
            on_image=shown.image,
            on_tiles=shown.tiles,
        )
    for line in _describe(summary, len(inputs), out, options):
        say(line)
    raise_all(summary.failures)
    return EXIT_OK


def _options(arguments: argparse.Namespace, checkpoint: "Checkpoint") -> "Options":
    from cellseg.inference.outputs.folder import LIKELY, Options
    from cellseg.inference.outputs.large import Tiling

    score = arguments.score
    kinds = parse_kinds(arguments.to or DEFAULT_KINDS)
    if score is None:
        score = max(LIKELY, checkpoint.config.inference.score_threshold)
    return Options(kinds, score, Tiling(arguments.tile, arguments.scale))


def _describe(summary: "Summary", count: int, out: Path, options: "Options") -> list[str]:
    """Say in lines what was written, and what was left out."""
    cells = sum(line.cells for line in summary.finished)
    covered = sum(line.covered for line in summary.finished)
    below = sum(line.below for line in summary.finished)
    done = len(summary.finished)
    lines = [f"{out}: {counted(cells, 'cell')} on {done} of {counted(count, 'image')}"]
    if summary.num_skipped:
        lines[0] += f", {summary.num_skipped} of them finished before"
    if covered:
        lines.append(
            f"left out: {counted(covered, 'detection')} that cells of higher scores cover wholly, or of empty masks"
        )
    if below:
        lines.append(f"with a score below 0.5: {counted(below, 'cell')}; --score 0.5 leaves them out")
    if done and not cells and options.score > 0:
        lines.append(f"No cell has a score of {options.score:g}. Try a lower --score, or train the model for longer.")
    lines += [f"all images together: {path}" for path in summary.files]
    return lines


class _Shown:
    """Progress: bars on a terminal, lines elsewhere."""

    def __init__(self, progress: "Progress", count: int):
        self._progress, self._count = progress, count
        self._images: TaskID = progress.add_task("images", total=count)
        self._tiles: TaskID = progress.add_task("tiles", total=None, visible=False)
        self._told = 0

    def image(self, done: int, image: "Input", known: "Finished | None", skipped: bool) -> None:
        self._progress.update(self._images, completed=done)
        self._progress.update(self._tiles, visible=False)
        self._told = 0
        outcome = "failed" if known is None else f"{counted(known.cells, 'cell')}, {known.height} x {known.width} px"
        if known is not None and known.covered:
            outcome += f", {known.covered} covered"
        if not skipped:
            self._print(f"[{done}/{self._count}] {image.name}: {outcome}")

    def tiles(self, done: int, count: int) -> None:
        self._progress.update(self._tiles, completed=done, total=count, visible=count > 1)
        if (
            not self._progress.console.is_terminal
            and count > 1
            and done - self._told >= max(TILES_PER_LINE, count // 20)
        ):
            self._told = done
            self._print(f"{done} of {counted(count, 'tile')}")

    def _print(self, text: str) -> None:
        self._progress.console.print(spell(text), soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _shown(count: int) -> "Iterator[_Shown]":
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        yield _Shown(progress, count)
