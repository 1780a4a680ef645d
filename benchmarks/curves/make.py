"""Makes a pool of real learning curves: random configs of a space, each trained to its full length.

    python -m benchmarks.curves.make benchmarks/curves/quickstart.yaml --results DIR

The result is a study of the product, ``DIR/<name of the file>``. One process trains one trial after the other, without
Ray; it may be interrupted at any time, and the same command continues. One trial in ten repeats an earlier config with
another seed, so that the noise is known.

``--publish FOLDER`` copies the tables without whatever tells of the machine.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.curves.crops import write_crops
from cellseg.cli import EXIT_OK, run_command, say
from cellseg.config import TrialConfig
from cellseg.errors import UserError, first_line
from cellseg.training.epoch_report import TrainingError
from search.prepare import StudyData, prepare_data, study_record
from search.sampling.protocol import Outcome
from search.space import Params, Space, load_space
from search.storage.store import StudyStore
from search.study.asha import Asha
from search.study.study import Study

REPEAT_EVERY = 10
"""Of so many trials in a row, the last repeats the config of the first."""
MACHINE = ("data.root", "model.weights_folder")
"""Keys of a config that hold paths."""


class RandomDraws:
    """Random configs, and some of them again. A :class:`search.sampling.protocol.Sampler`."""

    def __init__(self, space: Space):
        self._space = space

    def ask(self, number: int) -> Params:
        """Return the params of a number: they depend on nothing else."""
        if number % REPEAT_EVERY == REPEAT_EVERY - 1:
            number -= REPEAT_EVERY - 1
        return self._space.sample(np.random.default_rng([self._space.seed, number]))

    def prepare(self, count: int) -> bool:
        """Do nothing."""
        return False

    def report(self, number: int, epoch: int, value: float) -> None:
        """Do nothing."""

    def tell(self, number: int, outcome: Outcome, value: float | None = None, reason: str | None = None) -> None:
        """Do nothing."""

    def replay(
        self,
        number: int,
        params: Mapping[str, Any],
        outcome: Outcome | None,
        *,
        value: float | None = None,
        epochs: Iterable[tuple[int, float]] = (),
        reason: str | None = None,
    ) -> None:
        """Do nothing: a number says what its trial is."""


def make(space: Space, folder: Path, data: StudyData) -> None:
    """Train what is missing of a pool in the study ``folder``; ``space`` is without ASHA."""
    assert space.asha is None, "curves are to be complete"
    exists = StudyStore.exists(folder)
    store = StudyStore.open(folder) if exists else StudyStore.create(folder, study_record(space, folder.name, data))
    study = Study(
        folder.name,
        space,
        store,
        sampler=RandomDraws(space),
        asha=Asha(space.epochs, 3, space.epochs),
        fixed={"data.root": str(data.root)},
    )
    while (proposal := study.propose()) is not None:
        study.start()
        ending, detail = _train(study, proposal.number, proposal.config, data)
        study.end(proposal.number, ending, detail)
        row = store.trial(proposal.number)
        value = "none" if row.metric is None else f"{row.metric:.4f}"
        say(f"t{row.number:04d} {ending}: {value} after {row.epochs} epochs, {row.seconds:.0f} s")


def _train(study: Study, number: int, config: Mapping[str, Any], data: StudyData) -> tuple[str, str]:
    """Train a trial; return its ending and what there is to say to it. Its checkpoints are thrown away."""
    import torch

    from cellseg.training.fit import fit

    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        try:
            reports = fit(TrialConfig.from_flat(config), data.packed, Path(folder), device=torch.device("cpu"))
            with closing(reports):
                for report in reports:
                    study.report(number, asdict(report))
                    if report.ending is not None:
                        return report.ending, ""
        except TrainingError as error:
            return error.reason, error.detail
        except UserError as error:
            return "invalid", first_line(error)
    raise AssertionError("the last report says why it is the last")


def publish(source: Path, target: Path) -> int:
    """Write the tables of the study ``source`` to the new folder ``target`` without paths, names and times of the
    machine; return the number of trials. Trials that have not ended are left out."""
    study = StudyStore.open(source)
    left_out = {"command", "data_root", "created", "hardware", "continued", "format", "format_version", "written"}
    copy = StudyStore.create(target, {key: value for key, value in study.study.items() if key not in left_out})
    count = 0
    with copy.held():
        for row in study.trials():
            if row.state in {"RUNNING", "INTERRUPTED"}:
                continue
            count += 1
            config = {key: value for key, value in json.loads(row.config).items() if key not in MACHINE}
            copy.put_trial(
                replace(row, config=json.dumps(config), node="", started=None, ended=None, peak_memory_bytes=None)
            )
            for epoch in study.epochs(row.number):
                copy.add_epoch(replace(epoch, peak_memory_bytes=None))
    copy.flush()
    shutil.rmtree(target / "backup", ignore_errors=True)
    return count


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves.make", description=__doc__.splitlines()[0])
    parser.add_argument("space", type=Path, metavar="SPACE.yaml", help="with asha: off")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder of the study's folder")
    parser.add_argument("--trials", type=int, metavar="N", help="default: as the space says")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a data set in the release layout")
    parser.add_argument("--crops", type=int, metavar="N", help="train on N crops of --data's training images")
    parser.add_argument("--crop-size", type=int, default=96, metavar="PIXELS")
    parser.add_argument("--publish", type=Path, metavar="FOLDER", help="train nothing; write the tables there")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    space = load_space(arguments.space, [] if arguments.trials is None else [f"trials={arguments.trials}"])
    if space.asha is not None:
        raise UserError(f"{arguments.space}: must have asha: off, but got {space.asha}. Curves are to be complete.")
    folder = arguments.results / arguments.space.stem
    if arguments.publish is not None:
        count = publish(folder, arguments.publish)
        say(f"{arguments.publish}: {count} trials")
        return EXIT_OK
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    root = arguments.data
    if arguments.crops is not None:
        root = arguments.results / f"crops-{arguments.crops}-{arguments.crop_size}"
        if not root.is_dir():
            write_crops(arguments.data, root, arguments.crops, arguments.crop_size)
    make(space, folder, prepare_data(space, root, arguments.results))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(_parser(), _command))
