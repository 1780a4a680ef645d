"""Overhead of a trial: slot-seconds of a trial without training, ours against Ray Tune's default.

    python -m benchmarks.overhead --json overhead.json

A slot is room for one trial, here one CPU. A trial that trains nothing still takes a proposal, a process that has
imported torch, a report and rows in the tables; while that goes on its slot (on a cluster: its GPU) waits. Measured:

- ``ours``: the wall-clock time of a whole :func:`search.cluster.driver.run_study` of empty trials, times slots, by
  trials. Starting the processes is part of it, starting the cluster is not.
- ``ray_default``: the same of ``tune.Tuner(function).fit()`` with everything left at its default, where the function
  imports torch and reports once: what people get out of the box.
- ``ours_further``: the same from one trial's end to a later one's, so that what is paid once does not count.
- ``efficiency``: the time that sleeping trials would need if slots never waited, by the time they took.

The first two take turns on one machine, ``--repeats`` times; medians are reported, single measurements are in ``raw``.
"""

import argparse
import contextlib
import importlib
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.measure import at_least_one, hardware, versions
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.errors import UserError
from cellseg.files import write_json

if TYPE_CHECKING:
    from search.cluster.trainable import CellTrainable
    from search.study.study import Study

SPACE = Path(__file__).parents[1] / "spaces" / "quickstart.yaml"
"""The sampled space: one that ships with the product."""
PACKAGES = ("ray", "optuna", "torch", "pyarrow")
TARGETS = {
    "ours": ("<=", 0.5),
    "ours_further": ("<=", 0.15),
    "ours / ray_default": ("<=", 0.05),
    "efficiency": (">=", 0.85),
}


@dataclass(frozen=True)
class Timing:
    """When the trials of one search ended."""

    slots: int
    wall: float
    """Seconds from the start of the search to its return, the cluster already up."""
    ends: tuple[float, ...] = ()
    """Seconds from the start of the search to the end of each trial, in order; empty where that was not observed."""

    def per_trial(self, trials: int) -> float:
        """Slot-seconds of one of ``trials``, with everything that is paid once."""
        return self.wall * self.slots / trials

    def further(self, skip: int) -> float:
        """Slot-seconds of each trial that ended after the first ``skip``, of which there must be at least one."""
        return (self.ends[-1] - self.ends[skip - 1]) * self.slots / (len(self.ends) - skip)

    def efficiency(self, trials: int, seconds: float) -> float:
        """Share of the slots' time that ``trials`` of ``seconds`` each filled, 0 to 1."""
        rounds = -(-trials // self.slots)
        return rounds * seconds / self.wall


def make_trainable(seconds: float) -> "type[CellTrainable]":
    """The product's Trainable whose training is replaced: it sleeps, then reports one epoch, the last.

    The class is local so that it travels to the workers by value: they need not find this module.
    """
    from search.cluster.trainable import CellTrainable

    class EmptyTrainable(CellTrainable):
        def _fit(self, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
            import time

            from cellseg.training.epoch_report import EpochReport

            time.sleep(seconds)
            metrics = {f"{kind}/{name}": 0.5 for kind in ("segm", "bbox") for name in ("AP", "AP50", "AP75", "AR")}
            report = EpochReport(
                epoch=1,
                losses={"loss": 1.0},
                metrics=metrics | {"loss/validation": 1.0},
                value=0.5,
                best_value=0.5,
                best_epoch=1,
                learning_rate=1e-3,
                seconds=seconds,
                images_per_second=1.0,
                peak_memory_bytes=1,
                parameters=1,
                micro_batch=1,
                ending="epochs",
            )
            yield asdict(report)

    return EmptyTrainable


def time_ours(folder: Path, name: str, trials: int, seconds: float = 0.0) -> Timing:
    """Run a study of the product, its board and its tables included, on the cluster that is up.

    Args:
        folder: where the study's folder is made.
        seconds: what each trial sleeps.
    """
    import search.cluster.driver
    from search.cluster.driver import run_study
    from search.cluster.slots import num_slots
    from search.views.board import Board

    study = _make_study(folder / name, trials)
    board = Board(study, _no_console())
    resources = {"cpu": 1.0, "gpu": 0.0}
    ends: list[float] = []

    def note() -> None:
        board.update()
        ends.extend([time.monotonic() - start] * (study.num_finished - len(ends)))

    with patch.object(search.cluster.driver, "CellTrainable", make_trainable(seconds)):
        start = time.monotonic()
        done = run_study(study, _empty_table(), resources, on_event=note)
        wall = time.monotonic() - start
    assert done and len(ends) == trials
    return Timing(num_slots(resources), wall, tuple(ends))


def time_ray_default(folder: Path, trials: int) -> Timing:
    """Run Ray Tune as it comes, on the cluster that is up. Only its output goes elsewhere: into ``folder``, and its
    tables nowhere."""
    from ray import tune

    from search.cluster.slots import num_slots

    def train(config: dict[str, Any]) -> None:
        import torch

        tune.report({"value": float(torch.ones(()))})

    tuner = tune.Tuner(
        train,
        param_space={"lr": tune.loguniform(1e-4, 1e-2)},
        tune_config=tune.TuneConfig(num_samples=trials),
        run_config=tune.RunConfig(storage_path=str(folder)),
    )
    start = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        results = tuner.fit()
    wall = time.monotonic() - start
    assert len(results) == trials and not results.errors
    return Timing(num_slots({"cpu": 1.0}), wall)


def measure(trials: int, ray_trials: int, skip: int, repeats: int, sleeping: int, seconds: float) -> dict[str, Any]:
    """All measurements, on clusters of their own, as the JSON file holds them.

    Args:
        trials: empty trials of our search.
        ray_trials: and of Ray's, which starts a process for each: fewer cost it no more each.
        skip: of those, the ones that are over before ``ours_further`` begins; fewer than ``trials``.
        repeats: how often ours and Ray's default take turns.
        sleeping, seconds: number and duration of the sleeping trials.
    """
    _warm_up()
    raw: dict[str, list[dict[str, Any]]] = {"ray_default": [], "ours": [], "sleeping": []}
    per_trial: dict[str, list[float]] = {"ray_default": [], "ours": [], "ours_further": []}
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        folder = Path(scratch)
        for repeat in range(repeats):
            with _plain_cluster():
                timing = time_ray_default(folder / "ray", ray_trials)
            raw["ray_default"].append(asdict(timing))
            per_trial["ray_default"].append(timing.per_trial(ray_trials))
            with _our_cluster():
                timing = time_ours(folder, f"empty{repeat}", trials)
            raw["ours"].append(asdict(timing))
            per_trial["ours"].append(timing.per_trial(trials))
            per_trial["ours_further"].append(timing.further(skip))
        with _our_cluster():
            timing = time_ours(folder, "sleeping", sleeping, seconds)
        raw["sleeping"].append(asdict(timing))
    values = {name: median(measured) for name, measured in per_trial.items()}
    ratios = {f"{name} / ray_default": values[name] / values["ray_default"] for name in ("ours", "ours_further")}
    values["efficiency"] = timing.efficiency(sleeping, seconds)
    return {
        **values,
        "ratios": ratios,
        "targets": judge(values | ratios),
        "settings": {
            "trials": trials,
            "ray_trials": ray_trials,
            "skip": skip,
            "repeats": repeats,
            "sleeping": sleeping,
            "seconds": seconds,
        },
        "versions": versions(PACKAGES),
        "hardware": hardware() | {"slots": timing.slots, "system": platform.platform(), "load": os.getloadavg()},
        "per_trial": per_trial,
        "raw": raw,
    }


def judge(values: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Each of :data:`TARGETS` with the measured value and whether it is met."""
    return {
        name: {"target": f"{sign} {limit}", "value": values[name], "met": (values[name] <= limit) == (sign == "<=")}
        for name, (sign, limit) in TARGETS.items()
    }


def _make_study(folder: Path, trials: int) -> "Study":
    from search.space import load_space
    from search.storage.store import StudyStore
    from search.study.choose import make_asha, make_sampler
    from search.study.study import Study

    space = load_space(SPACE, [f"trials={trials}"])
    store = StudyStore.create(folder, {"name": folder.name, "metric": space.metric})
    return Study(folder.name, space, store, sampler=make_sampler(space), asha=make_asha(space))


def _empty_table() -> Any:
    import pyarrow as pa

    metadata = {"fingerprint": "0" * 32, "class_names": '["cell"]', "settings": "{}"}
    return pa.schema([("name", pa.string())]).with_metadata(metadata).empty_table()


def _no_console() -> Any:
    from rich.console import Console

    return Console(file=io.StringIO())


@contextlib.contextmanager
def _our_cluster() -> Iterator[None]:
    """The cluster of ``search.run``, which sets environment variables that the other must not see."""
    from search.cluster.connect import ray_cluster

    with patch.dict(os.environ), ray_cluster(None):
        yield


@contextlib.contextmanager
def _plain_cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _warm_up() -> None:
    """Bring the packages' files into the page cache, or the first to be measured would read them for all."""
    subprocess.run([sys.executable, "-c", "import torch, ray.tune, cellseg.training.fit"], check=True)
    for package in ("optuna", "ray.tune", "search.cluster.driver"):
        importlib.import_module(package)


def _command(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.skip < arguments.trials:
        raise UserError(
            f"--skip: must be at least 1 and less than --trials, but got {arguments.skip} of {arguments.trials}. "
            "Choose a smaller one."
        )
    result = measure(
        trials=arguments.trials,
        ray_trials=arguments.ray_trials or arguments.trials,
        skip=arguments.skip,
        repeats=arguments.repeats,
        sleeping=arguments.sleeping,
        seconds=arguments.seconds,
    )
    write_json(arguments.json, result)
    for name in ("ours", "ours_further", "ray_default"):
        say(f"{name:<20}{result[name]:8.3f} slot-seconds per trial")
    for name, judged in result["targets"].items():
        say(f"{name:<20}{judged['value']:8.3f}  target {judged['target']}: {'met' if judged['met'] else 'missed'}")
    say(f"Written: {arguments.json}")
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="file for the measurements")
    parser.add_argument("--trials", type=at_least_one, default=60, metavar="N", help="empty trials; default: 60")
    parser.add_argument(
        "--ray-trials", type=at_least_one, metavar="N", help="trials with Ray's default; default: as --trials"
    )
    parser.add_argument(
        "--skip",
        type=at_least_one,
        default=20,
        metavar="N",
        help="first trials that ours_further leaves out; default: 20",
    )
    parser.add_argument("--repeats", type=at_least_one, default=2, metavar="N", help="rounds; default: 2")
    parser.add_argument(
        "--sleeping", type=at_least_one, default=200, metavar="N", help="trials that only sleep; default: 200"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="duration of each sleeping trial; default: 1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
