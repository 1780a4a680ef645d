"""The one file where Ray meets ``cellseg.fit``: a Trainable whose step is one epoch.

A class Trainable has no thread to stop, so a process takes the next trial as soon as the last one is told to end. That
one is torn down in the first step of the next: Tune waits for a step as long as it takes, and starts its trial again if
the process dies, whereas it gives up a trial whose process dies in ``reset``. What the driver needs for pruning and its
tables travels in the result; checkpoints are written by ``fit`` itself into the trial's folder, and a trial that is
started again goes on from there.
"""

import gc
import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from cellseg.config import TrialConfig
from cellseg.errors import UserError, first_line
from cellseg.files import is_storage_error, storage_error
from cellseg.owners import SupersededError
from cellseg.training.epoch_report import TrainingError
from search.cluster.trial_log import TrialLog
from search.cluster.trial_reports import former_reports
from search.storage.checkpoint_copy import CheckpointCopy
from search.storage.progress import ProgressWriter
from search.storage.remote import Remote, working_folder
from search.storage.trial_logs import log_beside

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from cellseg.data.packed import PackedDataset

ENDING, DETAIL, REPORT = "ending", "detail", "report"
"""Keys of a result: why the trial is over (or None), the text to that, and the EpochReport as JSON (Tune would
flatten a dict, and metric names hold its separator). Never Tune's own ``done``: the scheduler is not shown such a
result."""
UNFIT_NODE = "unfit-node"
"""The ending that says that no trial can run on this machine. It gets no more, and this one goes on elsewhere."""


def trial_name(study: str, number: int) -> str:
    """Name a trial in Ray's dashboard, in process lists and on the board."""
    return f"{study}/t{number:04d}"


def checkpoint_folder(config: dict[str, Any]) -> Path:
    """Return where a trial's checkpoints go on this machine, by the config that Ray passes."""
    folder = Path(config["folder"])
    if (uri := config.get("storage")) is None:
        return folder
    results, _, study = uri.rpartition("/")
    return working_folder(results) / study / folder.parent.name / folder.name


class CellTrainable(tune.Trainable):
    """Trains one trial after another in one process.

    The config that Ray passes holds ``study`` (name), ``number``, ``config`` (flat TrialConfig), ``folder`` (where the
    trial's checkpoints go), and perhaps ``epochs`` (those that the study knows) and ``storage`` (the URI of a study in
    an object store: the folder is then this machine's own, see :class:`search.storage.checkpoint_copy.CheckpointCopy`).
    ``data`` is the packed table in Ray's object store: mapped, not copied.
    """

    def setup(self, config: dict[str, Any], data: "pa.Table | None" = None) -> None:
        # Nothing slow here: Tune gives the trial of a process that has not started to one that comes free meanwhile,
        # and throws the new process away.
        self._table = data
        self._log = TrialLog()
        self._data: PackedDataset | None = None
        self._reports: Iterator[dict[str, Any]] = iter(())
        self._copy: CheckpointCopy | None = None  # of the trial that trains, if its study is in an object store
        self._put_log: Callable[[], None] = lambda: None
        self._next: dict[str, Any] | None
        """A trial of which nothing is built yet."""
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch. Whatever ends the trial is told as data; an exception here would look like a lost
        machine."""
        self._show_name(is_training=True)
        if self._next is not None and self._data is not None:
            self.cleanup()
        if self._next is not None:
            self._log.begin(self._next["study"], self._next["number"], checkpoint_folder(self._next))
        self._log.trim()
        try:
            if self._data is None:
                if (problem := self._unfit_node()) is not None:
                    return self._end(UNFIT_NODE, problem)
                self._data = self._prepare()
            if self._next is not None:
                self._reports, self._next = self._fit(self._next), None
            report = next(self._reports, None)
        except TrainingError as error:
            return self._end(error.reason, error.detail)
        except Exception as error:
            from cellseg.device import exhausted_memory, is_gpu_broken

            if is_storage_error(error):
                return self._end("storage", f"{platform.node()}: {storage_error(error)}")
            if isinstance(error, SupersededError):
                raise  # the driver has given this process up: whatever it told now would be of another one's trial
            if isinstance(error, UserError):
                return self._end("invalid", str(error))
            if exhausted_memory(error) is not None:
                return self._end("out-of-memory", first_line(error))
            if is_gpu_broken(error):
                self._log.note(traceback.format_exc())
                raise  # the process is of no use any more: let it die, Ray starts the trial in another
            return self._end("bug", traceback.format_exc(limit=-6))
        if report is None:  # resumed when it was already trained to the end
            return self._end("epochs", "")
        self._epoch = report["epoch"]
        self._log.note(_line(report))
        return {REPORT: json.dumps(report), ENDING: report["ending"], DETAIL: ""}

    def cleanup(self) -> None:
        """Let go of a trial's model, optimiser and loader, on the GPU too."""
        self._reports = iter(())
        if self._copy is not None:
            self._copy.close()  # what the trial's last epoch left is on its way: the study may keep it
            self._copy = None
            self._put_log()
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def __repr__(self) -> str:
        # Ray's dashboard asks once, when the process starts.
        return getattr(self, "_name", type(self).__name__)

    def _unfit_node(self) -> str | None:
        """Why this machine cannot take trials: it does not see the study's folder as the driver does."""
        from search.cluster.shared_folder import require_shared_folder

        assert self._next is not None, "a process that has prepared nothing has a trial to begin"
        try:
            if uri := self._next.get("storage"):
                if not Remote(uri).exists("study.json"):
                    raise UserError(f"{uri}: must hold the study, but got none. Use one store for all machines.")
                return None
            require_shared_folder(Path(self._next["folder"]).parent.parent)
        except UserError as error:
            return f"{platform.node()}: {error}" if self._next.get("storage") else str(error)
        return None

    def _prepare(self) -> "PackedDataset":
        """Prepare the process once, before its first trial trains: seconds of imports, mostly."""
        from cellseg.data.packed import PackedDataset

        self._device = self._take_resources()  # imports torch
        # Modules stay for good: unfrozen, every cleanup walks their objects, which takes tenths of a second.
        gc.collect()
        gc.freeze()
        return PackedDataset(self._table)

    def _begin(self, config: dict[str, Any]) -> None:
        self._name = trial_name(config["study"], config["number"])
        self._epoch, self._epochs = config.get("epochs", 0), config["config"].get("train.epochs")
        self._show_name()
        self._next = config

    def _fit(self, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """EpochReports as dicts; for a trial that goes on, first those of the epochs that the study may have missed."""
        # A generator of its own: nothing of a trial is built before its first step, whose errors are caught.
        from cellseg.training.fit import fit

        assert self._data is not None, "the step prepares the process"
        folder = checkpoint_folder(config)
        if uri := config.get("storage"):
            self._copy = CheckpointCopy(Remote(uri), config["number"], folder)
            self._put_log = partial(_put_log, Remote(uri), folder)
            self._copy.fetch()
        trial = TrialConfig.from_flat(config["config"])
        with closing(ProgressWriter(folder, trial.train.batch_size, self._measure)) as progress:
            for former in former_reports(folder, config.get("epochs", 0)):
                progress.continue_from(former["epoch"])
                yield former
            reports = fit(trial, self._data, folder, device=self._device, on_step=progress.step)
            for report in map(asdict, reports):
                if self._copy is not None:
                    self._copy.start()
                    if report["ending"] is not None:
                        self._copy.finish()
                yield report
        if self._copy is not None:
            self._copy.finish()

    def _measure(self) -> tuple[str, int | None]:
        """The device, and the most memory so far in bytes."""
        import torch

        from cellseg.training.memory import peak_memory

        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return name, peak_memory(self._device)

    def _end(self, ending: str, detail: str) -> dict[str, Any]:
        """The result of a trial that ends; called where its error, if there is one, was caught."""
        if sys.exc_info()[0] is not None:
            self._log.note(traceback.format_exc())
        self._log.note(f"ended as {ending}")
        self._put_log()
        return {REPORT: json.dumps(None), ENDING: ending, DETAIL: detail}

    def _show_name(self, *, is_training: bool = False) -> None:
        import ray

        # The dashboard's list of worker processes and `ps` show the trial that runs now, and its present epoch.
        epoch = f" epoch {self._epoch + 1}/{self._epochs}" if is_training and self._epochs is not None else ""
        ray._raylet.setproctitle(f"ray::{self._name}{epoch}")

    def _take_resources(self) -> "torch.device":
        """The device that Ray gave this process; threads and the memory of a shared GPU are limited to its share.

        Ray hides no GPU from a process that was given none, so what torch sees is no evidence.

        Raises:
            UserError: a GPU was given, but torch sees none.
        """
        import ray
        import torch

        from cellseg.device import limit_gpu_memory

        given = ray.get_runtime_context().get_assigned_resources()
        # Trials that share a machine and each take all its cores slow each other down by an order of magnitude.
        torch.set_num_threads(max(1, int(given.get("CPU", 1))))
        share = given.get("GPU", 0)
        if not share:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise UserError(
                f"resources.gpu: torch must see the GPU that Ray gave the trial, but torch {torch.__version__} sees "
                "none. Install a build of torch for this machine's driver, or write resources: {cpu: 1}."
            )
        device = torch.device("cuda")
        if share < 1:
            limit_gpu_memory(device, share)
        return device


def _put_log(study: Remote, folder: Path) -> None:
    """Put the log of a trial into the object store, as far as it goes; without one there, nothing else is wrong."""
    log = log_beside(folder)
    if log.exists():
        with suppress(UserError):
            study.put(log, f"logs/{log.name}")


def _line(report: dict[str, Any]) -> str:
    """An epoch in the log."""
    value = "none" if report["value"] is None else f"{report['value']:.4f}"
    ending = f", ended as {report['ending']}" if report["ending"] else ""
    return f"epoch {report['epoch']}: value {value}, {report['seconds']:.1f} s{ending}"
