"""Train a single config: ``python -m cellseg.train CONFIG.yaml``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command, say, spell
from cellseg.config import TrialConfig
from cellseg.errors import UserError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellseg.train", description=__doc__)
    parser.add_argument(
        "config",
        type=Path,
        metavar="CONFIG",
        help=spell("YAML file of settings (python -m cellseg.config lists them), nested or dotted"),
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of the data set; default: the config's data.root"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the run; default: results/train-<config's name>"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of the file"
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.config import flatten, parse_overrides
    from cellseg.files import read_yaml

    where = str(arguments.config)
    flat = flatten(read_yaml(arguments.config) or {}, where) | parse_overrides(arguments.set)
    if arguments.data is not None:
        flat["data.root"] = str(arguments.data.resolve())
    config = TrialConfig.from_flat(flat, where)
    out = arguments.out or Path("results") / f"train-{arguments.config.stem}"

    from rich.progress import Progress

    from cellseg.checkpoint import BEST
    from cellseg.data.packed import open_packed
    from cellseg.device import pick_device
    from cellseg.training.epoch_report import TrainingError
    from cellseg.training.fit import fit

    device = pick_device(arguments.device)
    data = open_packed(config.data)
    say(f"{len(data)} images of {len(data.class_names)} classes, {device}, checkpoints in {out}")
    if config.model.weights == "none" and config.model.frozen_stages:
        say(f"note: the first {config.model.frozen_stages} stages stay random numbers: model.weights=none")
    report = None
    with Progress(transient=True) as progress:
        bar = progress.add_task("epoch 1")
        try:
            for report in fit(
                config, data, out, device=device, on_step=lambda n, of: progress.update(bar, completed=n, total=of)
            ):
                progress.reset(bar, description=f"epoch {report.epoch + 1}")
                skipped = f", {report.skipped_steps} steps skipped" if report.skipped_steps else ""
                progress.console.print(
                    f"epoch {report.epoch:3d}  loss {report.losses['loss']:.4f}  "
                    f"{config.train.metric} {report.value:.4f}  "
                    f"{report.images_per_second:.1f} images/s, {report.seconds:.0f} s{skipped}"
                )
        except TrainingError as failure:
            raise UserError(
                f"{where}: training ended with {failure}. Lower optim.lr, the image size or the batch."
            ) from failure
    if report is None:
        say(f"{out} is already trained to the end")
    else:
        say(f"best: {config.train.metric} {report.best_value:.4f} in epoch {report.best_epoch}, {out / BEST}")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
