"""The cost of a study, measured: one epoch of a few of its configs on this machine, times the epochs to expect.

Without Ray, one config after the other. Nothing stays: data that are generated, packed or checkpoints go to a temporary
folder.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellseg.config import TrialConfig
from cellseg.errors import Problem, UserError
from search.ablation import Ablation
from search.plan import expected_cost, sample_params
from search.prepare import prepare_data
from search.space import Space
from search.study.experiment import Experiment
from search.views.summary import duration

if TYPE_CHECKING:
    import torch

    from cellseg.data.packed import PackedDataset

MOST = 3
"""Configs that are measured."""
GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """One epoch of a config."""

    name: str
    seconds: float
    """Of training and validation."""
    setup_seconds: float
    """Before and after: the model, the loader, the checkpoint."""
    images_per_second: float
    peak_memory_bytes: int

    def describe(self) -> str:
        """Describe it in a line for people."""
        return (
            f"  {self.name}: {self.seconds:.1f} s per epoch, {self.images_per_second:.1f} images/s, "
            f"{self.peak_memory_bytes / GIB:.1f} GiB; {self.setup_seconds:.1f} s to begin"
        )


def describe_measured_cost(experiment: Experiment, data: Path | None) -> Iterator[str]:
    """Measure, and describe line by line what the study will cost.

    Args:
        data: folder given on the command line.

    Raises:
        UserError: data that cannot be had, a GPU that is not here, or configs of which none could train.
    """
    device = _device(experiment)
    with tempfile.TemporaryDirectory(prefix="cellseg-measure-") as folder:
        packed, root = _data(experiment, data, Path(folder))
        yield f"measured: one epoch on {_device_name(device)}, {len(packed)} images, alone on this machine"
        found, problems = [], []
        for place, (name, config) in enumerate(_configs(experiment, root)):
            try:
                found.append(_measure(name, config, packed, Path(folder) / f"run{place}", device, experiment))
            except UserError as error:
                problems += [f"{name}: {problem}" for problem in error.problems]
                yield from (f"  {name}: cannot train: {problem}" for problem in error.problems)
            else:
                yield found[-1].describe()
    if not found:
        raise UserError(*problems)
    yield _describe_study(experiment, found, device)


def _device(experiment: Experiment) -> "torch.device":
    import torch

    from cellseg.device import pick_device

    wanted = experiment.resources
    if wanted is None:
        return pick_device()
    if wanted.gpu and not torch.cuda.is_available():
        got = f"gpu={wanted.gpu:g} and no GPU that torch {torch.__version__} sees"
        remedy = "Run it on a machine like those of the study, or with --set resources.gpu=0 for the time on a CPU."
        raise UserError(Problem("--measure", "trials must find here what resources asks for", got, remedy))
    return torch.device("cuda" if wanted.gpu else "cpu")


def _device_name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _data(experiment: Experiment, data: Path | None, folder: Path) -> "tuple[PackedDataset, Path]":
    """The study's data; what the cache of packed data lacks is packed into ``folder``."""
    from cellseg.data.packed import CACHE, default_cache

    cache = folder / "cache"
    cache.mkdir()
    for file in default_cache().glob("*.arrow"):
        (cache / file.name).symlink_to(file.resolve())
    former = os.environ.get(CACHE)
    os.environ[CACHE] = str(cache)
    try:
        prepared = prepare_data(experiment, data, folder)
    finally:
        del os.environ[CACHE]
        if former is not None:
            os.environ[CACHE] = former
    return prepared.packed, prepared.root


def _configs(experiment: Experiment, root: Path) -> Iterator[tuple[str, TrialConfig]]:
    """The first configs of the study, from random weights: epochs take as long as from published ones."""
    flats: list[tuple[str, dict[str, Any]]]
    if isinstance(experiment, Ablation):
        flats = [(f"row {name}", experiment.flat_config(name)) for name in experiment.trained_rows[:MOST]]
    else:
        assert isinstance(experiment, Space), experiment
        word = "start config" if experiment.start_from else "random config"
        count = min(MOST, len(experiment.start_from)) or MOST
        samples = sample_params(experiment, MOST)[:count]
        flats = [(f"{word} {at}", experiment.flat_config(params, seed=0)) for at, params in enumerate(samples, start=1)]
    for name, flat in flats:
        yield name, TrialConfig.from_flat(flat | {"data.root": str(root), "model.weights": "none"}, where=name)


def _measure(
    name: str,
    config: TrialConfig,
    data: "PackedDataset",
    folder: Path,
    device: "torch.device",
    experiment: Experiment,
) -> Measured:
    """Train one epoch as a trial would.

    Raises:
        UserError: the config cannot train.
    """
    import torch

    from cellseg.training.epoch_report import TrainingError
    from cellseg.training.fit import fit

    cpus = experiment.resources.cpu if experiment.resources else None
    threads = torch.get_num_threads()
    if cpus or device.type == "cpu":
        torch.set_num_threads(max(1, int(cpus or 1)))  # as in a trial
    began = time.perf_counter()
    try:
        with closing(fit(config, data, folder, device=device)) as reports:
            report = next(reports)
        seconds = time.perf_counter() - began
    except TrainingError as error:
        raise UserError(Problem("", "must be able to train", str(error), "Change the space.")) from error
    finally:
        torch.set_num_threads(threads)
    return Measured(
        name, report.seconds, max(0.0, seconds - report.seconds), report.images_per_second, report.peak_memory_bytes
    )


def _describe_study(experiment: Experiment, found: list[Measured], device: "torch.device") -> str:
    """Say what all epochs of the study take, at the mean of what was measured."""
    mean = sum(each.seconds for each in found) / len(found)
    setup = sum(each.setup_seconds for each in found) / len(found)
    if isinstance(experiment, Ablation):
        epochs = float(experiment.total_epochs)
    else:
        assert isinstance(experiment, Space), experiment
        epochs = expected_cost(experiment).epochs
    hours = (epochs * mean + experiment.trials * setup) / 3600
    gpu = experiment.resources.gpu if experiment.resources else float(device.type == "cuda")
    slots = _slots(experiment, device)
    spent = f"{_hours(hours)} of trials" + (f", {_hours(hours * gpu)} of GPUs" if gpu else "")
    beside = "one trial after the other" if slots == 1 else f"{slots} trials side by side"
    limit = experiment.limits.hours if experiment.limits else None
    cut = f"; limits.hours ends it after {limit:g} h" if limit is not None and limit < hours / slots else ""
    return (
        f"the study: about {epochs:,.0f} epochs of {mean:.1f} s and {experiment.trials} beginnings of {setup:.1f} s: "
        f"{spent}. On this machine {duration(3600 * hours / slots)} with {beside}{cut}."
    )


def _hours(hours: float) -> str:
    return f"{hours:.3g} h"


def _slots(experiment: Experiment, device: "torch.device") -> int:
    """Trials that run here side by side, as Ray would place them, if nothing but CPUs and GPUs counts."""
    import torch

    from cellseg.device import usable_cpus

    wanted = experiment.resources
    limits = [usable_cpus() // max(1, int(wanted.cpu))] if wanted and wanted.cpu else []
    if device.type == "cuda":
        limits.append(int(torch.cuda.device_count() / (wanted.gpu if wanted else 1)))
    elif not limits:
        limits.append(usable_cpus())
    if experiment.max_slots is not None:
        limits.append(experiment.max_slots)
    return max(1, min(*limits, experiment.trials))
