"""The preparation of a study: its data, its folder, new or continued, its sampler and its ASHA."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cellseg import __version__
from cellseg.config import TrialConfig
from cellseg.data.packed import PackedDataset, open_packed
from cellseg.data.synthetic import generate_dataset
from cellseg.errors import UserError
from cellseg.files import sweep
from search.space import Generate
from search.storage.find import GENERATED, weights_folder
from search.storage.remote import remote_study
from search.storage.store import StudyStore
from search.study.changes import changed_settings, changed_versions
from search.study.choose import make_asha, make_sampler
from search.study.earlier import with_starts
from search.study.experiment import Experiment
from search.study.study import Study

PROGRAM = "cellseg-search"
PACKAGES = ("ray", "optuna", "torch", "torchvision", "timm", "albumentations", "pycocotools", "numpy", "pyarrow")


@dataclass(frozen=True)
class StudyData:
    """The data of a study."""

    root: Path
    """Absolute path of the data set."""
    packed: PackedDataset


def prepare_data(experiment: Experiment, data: Path | None, results: Path) -> StudyData:
    """Find or generate the data set, pack it, and check that it can be split as the experiment says.

    Args:
        data: folder given on the command line; it takes precedence over the experiment's.

    Raises:
        UserError: no data named, or all problems of the data set.
    """
    if data is not None:
        root = data
    elif experiment.data is None:
        raise UserError(
            "--data: a data set must be named, but neither the command nor the space does. Pass --data DIR."
        )
    elif experiment.data.generate is not None:
        root = generated(experiment.data.generate, results)
    else:
        assert experiment.data.root is not None
        root = Path(experiment.data.root)
    root = root.expanduser().resolve()
    reading = {key: value for key, value in experiment.fixed.items() if key.startswith("data.")} | {
        "data.root": str(root)
    }
    config = TrialConfig.from_flat(reading).data
    packed = open_packed(config)
    packed.split(config)
    return StudyData(root, packed)


def generated(wanted: Generate, results: Path) -> Path:
    """Return the folder of generated cells with these numbers, made if it is not there. Its name says what it holds."""
    folder = results / GENERATED / "-".join(f"{name}{value}" for name, value in wanted.model_dump().items())
    if not folder.is_dir():
        generate_dataset(folder, **wanted.model_dump())
    return folder


def open_study(
    experiment: Experiment,
    name: str,
    results: Path,
    data: StudyData,
    on_note: Callable[[str], None] = lambda text: None,
) -> Study:
    """Open the study ``results/<name>``: continued where it is there, else new.

    Args:
        on_note: told what a person should know about a continued study, in a sentence.

    Raises:
        UserError: it holds trials of another space or of other data, or cannot be written.
    """
    folder = results.resolve() / name
    for place in (folder, folder / "epochs"):
        sweep(place)
    if (folder / "study.json").exists():
        store = StudyStore.open(folder)
        former = store.study
        _check_same(name, former, experiment, data)
        experiment, taken = with_starts(experiment, name, results, former.get("space"))
        for line in taken:
            on_note(line)
        now = study_record(experiment, name, data)
        if changed := changed_versions(former, now["versions"]):
            on_note(f"study '{name}' goes on with other versions than before: {', '.join(changed)}")
            now["continued"] = [*former.get("continued", []), {"since": now["created"], "versions": now["versions"]}]
        # The targets, what is kept and where the data lie may change; writing makes it the latest study.
        changes = ("space", "command", "data_root", "continued")
        store.write_study(former | {key: now[key] for key in changes if key in now})
    else:
        experiment, _ = with_starts(experiment, name, results)
        store = StudyStore.create(folder, study_record(experiment, name, data))
    return Study(
        name,
        experiment,
        store,
        sampler=make_sampler(experiment),
        asha=make_asha(experiment),
        fixed={"data.root": str(data.root), "model.weights_folder": str(weights_folder(results))},
    )


@contextmanager
def cleared_if_refused(results: Path) -> Iterator[None]:
    """Remove the synthetic data and the empty folders that a block made in ``results`` if a UserError ends it and no
    study uses them.

    Folders that were there before stay, with all that was in them.
    """
    folders = (results / GENERATED, results, *results.parents)
    new = [folder for folder in folders if not folder.exists()]
    former = set((results / GENERATED).glob("*"))
    try:
        yield
    except UserError:
        if not any(StudyStore.exists(folder) for folder in results.glob("*")):
            for folder in set((results / GENERATED).glob("*")) - former:
                shutil.rmtree(folder, ignore_errors=True)
            for folder in new:
                with suppress(OSError):  # not empty, so somebody's
                    folder.rmdir()
        raise


@contextmanager
def discarded_unless_started(folder: Path) -> Iterator[None]:
    """Remove a study's new folder if a UserError ends the block before the first trial: there is nothing to continue.

    Args:
        folder: locked by this process; a new one holds nothing but the lock.
    """
    is_new = all(path.name.startswith(".") for path in folder.iterdir())
    try:
        yield
    except UserError:
        if is_new and not (StudyStore.exists(folder) and StudyStore.open(folder).trials()):
            shutil.rmtree(folder, ignore_errors=True)
            if (remote := remote_study(folder)) is not None:
                remote.remove_folder()
        raise


def study_record(experiment: Experiment, name: str, data: StudyData) -> dict[str, Any]:
    """Return what ``study.json`` holds: all that is needed to understand and repeat the study."""
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "metric": experiment.metric,
        "objective": experiment.objective.model_dump() if experiment.objective else None,
        "seed": experiment.seed,
        "space": experiment.to_json(),
        "space_fingerprint": experiment.fingerprint,
        "data_root": str(data.root),
        "data_fingerprint": data.packed.fingerprint,
        "class_names": list(data.packed.class_names),
        "versions": {PROGRAM: __version__, "python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
        "hardware": _hardware(),
    }


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.platform(), "cpus": os.cpu_count(), "gpus": gpus}


def _check_same(name: str, study: Mapping[str, Any], experiment: Experiment, data: StudyData) -> None:
    problems = []
    if study.get("space_fingerprint") != experiment.fingerprint:
        problems.append(
            f"study '{name}': must continue with the space it started with, but got "
            f"{changed_settings(study.get('space'), experiment)}: its trials could not be compared. Choose another "
            "--study NAME, or restore the earlier space."
        )
    if study.get("data_fingerprint") != data.packed.fingerprint:
        problems.append(
            f"study '{name}': must continue with the data it started with, but got other images, masks or reading "
            f"settings: data {study.get('data_root')} -> {data.root}. Choose another --study NAME."
        )
    if problems:
        raise UserError(*problems)
