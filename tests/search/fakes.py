"""Stand-ins that several tests of the search share: a space without data, reports, and trials that do not train.

Worker processes import this module, so it imports neither pytest nor torch.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cellseg.training.epoch_report import TrainingError
from search.cluster.trainable import CellTrainable
from search.space import Space, parse_space
from search.storage.store import StudyStore
from search.study.choose import make_asha, make_sampler
from search.study.experiment import Experiment
from search.study.study import Study

METRIC = "segm/AP50"


def make_space(**settings: Any) -> Space:
    """Two sampled keys, six trials of four epochs, rungs at 1 and 3; ``settings`` stand over that."""
    content = {
        "metric": METRIC,
        "direction": "maximize",
        "trials": 6,
        "epochs": 4,
        "keep": 2,
        "asha": {"grace": 1, "reduction": 3},
        "space": {
            "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "train.batch_size": {"choices": [1, 2, 4]},
            "model.weights": "none",
        },
    }
    return parse_space(content | settings, "space.yaml")


def make_study(
    folder: Path, name: str = "study", clock: Callable[[], float] = time.monotonic, **settings: Any
) -> Study:
    """A study in ``folder/name``, new or continued."""
    place = folder / name
    space = make_space(**settings)
    new = {"name": name, "metric": space.metric, "objective": settings.get("objective")}
    store = StudyStore.open(place) if StudyStore.exists(place) else StudyStore.create(place, new)
    return study_of(name, space, store, clock)


def study_of(
    name: str, experiment: Experiment, store: StudyStore, clock: Callable[[], float] = time.monotonic
) -> Study:
    """A study with the sampler and the ASHA that the product chooses."""
    return Study(name, experiment, store, sampler=make_sampler(experiment), asha=make_asha(experiment), clock=clock)


def finish(study: Study, number: int, ending: str, detail: str = "") -> None:
    """End a trial, unless ASHA has ended it."""
    if study.store.trial(number).ended is None:
        study.end(number, ending, detail)


def told(ending: str | None) -> str | None:
    """The ending that the last report of a trial tells: that of training, which is none where others end the trial."""
    return ending if ending in {"epochs", "patience"} else None


def make_report(
    epoch: int, value: float, *, metric: str = METRIC, ending: str | None = None, **metrics: float
) -> dict[str, Any]:
    """An EpochReport as a dict, of a trial that gets better with every epoch."""
    return {
        "epoch": epoch,
        "losses": {"loss": 1.0 / epoch},
        "metrics": {metric: value} | metrics,
        "value": value,
        "best_value": value,
        "best_epoch": epoch,
        "learning_rate": 1e-3,
        "seconds": 0.5,
        "images_per_second": 10.0,
        "peak_memory_bytes": 10**6,
        "micro_batch": 4,
        "skipped_steps": 0,
        "parameters": 1000,
        "ending": ending,
    }


def lifelike_ending(number: int, epoch: int, epochs: int) -> str | None:
    """How a trial ends by itself after an epoch, if it does; one in seven early, at epoch 3."""
    if number % 7 == 3 and epoch == 3:
        return "patience"
    return "epochs" if epoch == epochs else None


def lifelike_report(number: int, epoch: int, epochs: int) -> dict[str, Any]:
    """A report on a curve that follows from the trial's number alone; values are rounded, so that many are equal."""
    rng = np.random.default_rng(number)
    level, losses = rng.uniform(0.2, 0.9), rng.uniform(size=epochs)
    values = [round(level * (1 - math.exp(-e / 2)), 1) for e in range(1, epochs + 1)]
    loss = round(float(losses[epoch - 1]), 1)
    ending = lifelike_ending(number, epoch, epochs)
    report = make_report(epoch, values[epoch - 1], ending=ending, **{"loss/validation": loss})
    return report | {"seconds": 2.0 + losses[epoch - 1]}


def empty_table() -> pa.Table:
    """A packed table without images."""
    metadata = {"fingerprint": "0" * 32, "class_names": '["class1"]', "category_ids": "[1]", "settings": "{}"}
    return pa.schema([("name", pa.string())]).with_metadata(metadata).empty_table()


class FakeTrainable(CellTrainable):
    """Runs one of :data:`FITS`, by the study's name up to a dash, instead of training."""

    def _fit(self, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
        return FITS[config["study"].partition("-")[0]](config)

    def _take_resources(self) -> Any:
        return None  # the real one imports torch

    def cleanup(self) -> None:
        self._reports = iter(())


def _epochs(config: dict[str, Any], value: float, epoch_seconds: float = 0.0) -> Iterator[dict[str, Any]]:
    """Four epochs that get better, with a checkpoint of their own kind: one that died goes on where it was."""
    last = Path(config["folder"]) / "last" / "epoch"
    last.parent.mkdir(parents=True, exist_ok=True)
    epoch = int(last.read_text()) if last.exists() else 0
    first = min(config.get("epochs", epoch), epoch - 1) + 1  # of those that the study may have missed
    for former in range(max(1, first), epoch + 1):
        yield make_report(former, value + former / 100, pid=os.getpid())
    while epoch < 4:
        epoch += 1
        time.sleep(epoch_seconds)
        last.write_text(str(epoch))
        (last.parent.parent / "best").mkdir(exist_ok=True)
        yield make_report(epoch, value + epoch / 100, ending="epochs" if epoch == 4 else None, pid=os.getpid())


def _mixed(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every fate that a trial can have, by its number."""
    number, folder = config["number"], Path(config["folder"])
    notes = folder.parent.parent.parent / "notes"
    with (notes / f"t{number}").open("a") as file:
        file.write(Path("/proc/self/cmdline").read_text().strip("\0") + "\n")
    starts = len((notes / f"t{number}").read_text().splitlines())
    os.write(1, f"printed by t{number:04d}\n".encode())
    value = 0.0 if number in {2, 3} else 0.1 + number / 20  # rising: only 2 and 3 are behind at a rung
    for report in _epochs(config, value):
        try:
            if number == 4 and report["epoch"] == 3 and starts == 1:
                os._exit(1)
            if number == 5 and report["epoch"] == 2:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if number == 6 and report["epoch"] == 2:
                raise KeyError("a bug [/of ours]")
            if number == 7:
                raise TrainingError("out-of-memory", "tried to allocate 80 GiB")
            yield report
        finally:
            if number == 3:
                time.sleep(5)
                (notes / "slow").touch()


def node_number(node_id: str) -> int:
    """A machine's id as the metric ``node``, short enough for a float."""
    return int(node_id[:10], 16)


def _located(config: dict[str, Any], epoch_seconds: float = 1.5) -> Iterator[dict[str, Any]]:
    """Epochs that tell the machine they ran on, longer than rows wait to be written. A machine that the file ``bad``
    beside the study names kills the process; a trial whose number the file ``stops`` names is stopped there, once."""
    import ray

    node, notes = ray.get_runtime_context().get_node_id(), Path(config["folder"]).parents[2]
    for report in _epochs(config, config["number"] / 100, epoch_seconds):
        if (notes / "bad").exists() and (notes / "bad").read_text() == node:
            os._exit(1)
        stops = notes / "stops"
        if report["epoch"] == 2 and stops.exists() and int(stops.read_text()) == config["number"]:
            stops.write_text("-1")
            (notes / "stopped").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        yield report | {"metrics": report["metrics"] | {"node": node_number(node)}}


def _broken(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from ()
    raise ValueError("the same for every trial")


FITS = {
    "mixed": _mixed,
    "broken": _broken,
    "located": _located,
    # Longer than the start of a process: else the next trial finds a process that is free before its own is there.
    "lingering": lambda config: _located(config, epoch_seconds=3.0),
    "steady": lambda config: _epochs(config, config["number"] / 10, epoch_seconds=0.2),
}
