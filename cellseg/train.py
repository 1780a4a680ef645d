"""Train a single config: ``python -m cellseg.train CONFIG.yaml``, or the best one of a study: ``--from-study NAME``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.cli import EXIT_OK, named, run_command, say
from cellseg.config import TrialConfig
from cellseg.errors import UserError
from cellseg.names import counted

BEST_CONFIG = "best.yaml"
"""Config of a study's best trial, in the study's folder."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cellseg.train", description=__doc__)
    parser.add_argument(
        "config",
        type=Path,
        nargs="?",
        metavar="CONFIG",
        help=named("YAML file of settings (python -m cellseg.config lists them), nested or dotted"),
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
    parser.add_argument("--from-study", metavar="NAME", help=f"train the best config of this study ({BEST_CONFIG})")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="folder of all studies; default: results"
    )
    parser.add_argument(
        "--all-images",
        action="store_true",
        help="train on all labelled images, without validation: no metric, and the last epoch's weights are kept",
    )
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    from cellseg.config import flatten, parse_overrides
    from cellseg.files import read_yaml

    file, name = _find_config(arguments)
    where = str(file)
    flat = flatten(read_yaml(file) or {}, where) | parse_overrides(arguments.set)
    if arguments.data is not None:
        flat["data.root"] = str(arguments.data.resolve())
    if arguments.all_images:
        for line in _leave_out_validation(flat):
            say(f"note: {line}")
    config = TrialConfig.from_flat(flat, where)
    out = arguments.out or Path("results") / f"train-{name}"

    from rich.progress import Progress

    from cellseg.checkpoint import BEST
    from cellseg.data.packed import open_packed
    from cellseg.device import pick_device
    from cellseg.training.epoch_report import TrainingError
    from cellseg.training.fit import fit

    device = pick_device(arguments.device)
    data = open_packed(config.data)
    say(
        f"{counted(len(data), 'image')} of {counted(len(data.class_names), 'class', plural='classes')}, "
        f"{device}, checkpoints in {out}"
    )
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
                skipped = f", {counted(report.skipped_steps, 'step')} skipped" if report.skipped_steps else ""
                progress.console.print(
                    f"epoch {report.epoch:3d}  loss {report.losses['loss']:.4f}  "
                    + ("" if report.value is None else f"{config.train.metric} {report.value:.4f}  ")
                    + f"{report.images_per_second:.1f} images/s, {report.seconds:.0f} s{skipped}"
                )
        except TrainingError as failure:
            raise UserError(
                f"{where}: training ended with {failure}. Lower optim.lr, the image size or the batch."
            ) from failure
    if report is None:
        say(f"{out} is already trained to the end")
    elif report.best_value is None:
        say(f"trained on {counted(len(data), 'image')}, all there are, epoch {report.epoch}, {out / BEST}")
    else:
        say(f"best: {config.train.metric} {report.best_value:.4f} in epoch {report.best_epoch}, {out / BEST}")
    return EXIT_OK


def _find_config(arguments: argparse.Namespace) -> tuple[Path, str]:
    """Find the file of settings, and the name of its run.

    Raises:
        UserError: neither CONFIG nor --from-study, or both, or a study without a best config.
    """
    file, study = arguments.config, arguments.from_study
    if (file is None) == (study is None):
        got = "neither" if file is None else "both"
        raise UserError(f"CONFIG: must be a YAML file, or --from-study NAME in its place, but got {got}.")
    if study is None:
        # Every study calls its file so: the study's name tells them apart.
        return file, file.resolve().parent.name if file.name == BEST_CONFIG else file.stem
    folder = arguments.results / study
    file = folder / BEST_CONFIG
    if not file.is_file():
        got = "no best config: it has no trial with a value" if folder.is_dir() else "no such folder"
        raise UserError(f"--from-study: {folder} must be a study with a result, but got {got}.")
    return file, study


def _leave_out_validation(flat: dict[str, Any]) -> list[str]:
    """Set what training without validation needs; a line for each setting that has no effect then."""
    flat["data.train_on"] = "unvalidated"
    ended_early = [key for key in ("train.patience", "train.stop_after_decays") if flat.get(key) is not None]
    for key in ended_early:
        flat[key] = None
    return [f"{key} has no effect without validation: all epochs are trained" for key in ended_early]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
