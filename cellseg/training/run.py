"""The state of a training run and how an epoch changes it. The loop over epochs is in fit.py."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellseg.checkpoint import BEST, LAST, has_checkpoint, open_checkpoint, save_checkpoint
from cellseg.config import TrialConfig, gain
from cellseg.data.auto import resolve_auto
from cellseg.data.loader import training_loader
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.device import pick_device
from cellseg.errors import UserError
from cellseg.model.build import build_model, count_parameters
from cellseg.owners import Claim
from cellseg.training.ema import WeightAverage
from cellseg.training.epoch_report import Ending, EpochReport, TrainingError
from cellseg.training.loss_weights import loss_weights, total_loss
from cellseg.training.memory import hardest_batches, peak_memory, rehearse
from cellseg.training.schedule import learning_rate, num_decays
from cellseg.training.snapshot import Snapshot
from cellseg.training.stepper import MOST_SKIPPED_IN_A_ROW, Stepper
from cellseg.training.validation import Validation

OWNER = "owner"
"""File in ``last`` that names the process that may write; it goes with ``last`` when a trial ends."""

FEW_SHAPES = 4
"""cuDNN benchmarks its algorithms for each shape of each layer, tenths of a second each time. Two image sizes, also
rotated, and batches padded to the larger one are few shapes."""

REPORTS = "reports"
"""Key of a resumable checkpoint's training state: the reports of all its epochs."""


@dataclass(frozen=True)
class TrainedEpoch:
    """A trained epoch whose metrics may still be pending."""

    epoch: int
    losses: dict[str, float]
    skipped_steps: int
    learning_rate: float
    """Rate of its last optimiser step; the backbone's may be a share of it."""
    images_per_second: float
    seconds: float
    """Wall-clock time of training and of the network's part of validation."""
    metrics: "Future[dict[str, float]]"
    states: Callable[[], dict[str, Any]]
    """States of the judged model and of whatever a resumed run needs."""


@dataclass(frozen=True)
class JudgedEpoch:
    """An epoch with known metrics, whose checkpoints may still be in writing."""

    report: EpochReport
    """Without the remaining wait for the checkpoints."""
    saved: "Future[None]"


class TrainingRun:
    """The state of one training run.

    An epoch is trained (:meth:`train_epoch`), validated (:meth:`validate`), judged (:meth:`judge`), which starts to
    write its checkpoints, and reported (:meth:`report`) when they are on disk. The next epoch may train while
    the metrics of the last one are computed, if :attr:`overlaps`, and while its checkpoints are written, if
    :attr:`saves_beside`.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: PackedDataset,
        folder: Path,
        device: torch.device | None,
        micro_batch: int | None = None,
    ):
        """``micro_batch``: see :class:`cellseg.training.stepper.Stepper`."""
        self.config = config = resolve_auto(config, data)
        _require_watchable(config)
        self.data = data
        self.folder = folder
        self.device = device or pick_device()
        self.split = data.split(config.data)
        self.loader, self.batches = training_loader(data, self.split.training, config, self.device)
        self.validation = Validation(data, self.split.validation, config, self.device)
        torch.manual_seed(config.train.seed)
        model = build_model(config.model, config.inference, data.num_classes)
        self.stepper = Stepper(model, config, self.device, micro_batch)
        self.parameters = count_parameters(model, trainable=True)
        ema_decay = config.optim.ema_decay
        self.average = WeightAverage(model, ema_decay) if ema_decay is not None else None
        self.epoch = 0
        """The epoch that is trained, or was trained last; from 1."""
        self.judged_epoch = self.best_epoch = 0
        self.best_value: float | None = gain(config.train.metric, -math.inf) if self.split.validation else None
        self.watched: list[float] = []
        """Values of ``optim.plateau_watch``, one per judged epoch, sign-adjusted so that larger is better."""
        self.reports: list[dict[str, Any]] = []
        """Of all epochs so far, as dicts: whoever missed some finds them in the checkpoint. Their seconds lack the wait
        for the disk."""
        self.losses: dict[str, float] = {}
        """Mean losses of the last epoch, see :class:`cellseg.training.epoch_report.EpochReport`."""
        self.skipped_steps = 0
        """Steps of the last epoch whose gradients were not finite."""
        self.learning_rate = config.optim.lr
        self.shapes_repeat = self.on_gpu and shapes_repeat(data, self.split.training, config)
        """Whether cuDNN's search for the fastest algorithm for each shape pays off."""
        self._claim: Claim | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")

    @property
    def model(self) -> nn.Module:
        """The model that trains."""
        return self.stepper.model

    @property
    def judged_model(self) -> nn.Module:
        """The model that is validated and saved for predicting: the average, or the one that trains."""
        return self.model if self.average is None else self.average.model

    @property
    def on_gpu(self) -> bool:
        """Whether a lack of memory is an error (without a GPU, systems swap or kill) and the host has time to spare."""
        return self.device.type == "cuda"

    @property
    def overlaps(self) -> bool:
        """Whether the next epoch may begin before this one's metrics are known: the GPU trains while the CPU compares
        masks. The metrics are the same."""
        needs_them = self.config.optim.schedule == "plateau" or self.epoch == self.config.train.epochs
        return self.on_gpu and not needs_them

    @property
    def saves_beside(self) -> bool:
        """Whether the next epoch may begin before this one's checkpoints are written: the GPU need not wait for disk
        and hash. On a CPU, writing would only slow training down."""
        return self.on_gpu and self.epoch < self.config.train.epochs

    def rehearse(self) -> None:
        """Try the training images that need most memory, and predict the largest for validation, changing nothing.

        Raises:
            torch.OutOfMemoryError: they do not fit, ``micro_batch`` at a time.
        """
        micro_batch = self.stepper.micro_batch
        torch.backends.cudnn.benchmark = self.shapes_repeat  # as in training: a faster algorithm may take more memory
        for batch in hardest_batches(self.data, self.split.training, self.config, micro_batch):
            rehearse(self.stepper, batch)
        torch.backends.cudnn.benchmark = False
        if self.split.validation:
            self.validation.rehearse(self.judged_model)

    def train_epoch(self) -> Iterator[tuple[int, int]]:
        """Train on all images once; yields (batches done, batches of the epoch) after each batch.

        Raises:
            TrainingError: a loss that is minimised is finite for no batch, or the gradients of many steps in a row are
                not.
        """
        config = self.config
        # Proposals are sampled with torch's global generator. Seeding it by epoch makes resuming exact.
        torch.manual_seed(config.train.seed + 1_000_003 * self.epoch)
        self.batches.epoch = self.epoch
        self.model.train()
        torch.backends.cudnn.benchmark = self.shapes_repeat
        names: list[str] = []
        sums: Tensor | float = 0.0
        num_batches, per_step = len(self.batches), config.optim.accumulate_batches
        steps = math.ceil(num_batches / per_step)
        # Every image weighs the same: a step with fewer of them, as an epoch's last may be, has a smaller gradient.
        images_of_step = min(config.train.batch_size * per_step, len(self.split.training))
        for done, batch in enumerate(self.loader):
            step = done // per_step
            last_of_step = min((step + 1) * per_step, num_batches)  # the epoch's last step may have fewer batches
            losses = self.stepper.add_gradients(batch, len(batch) / images_of_step)
            names = list(losses)
            values = torch.stack([loss.float() for loss in losses.values()])
            is_number = torch.isfinite(values)
            sums = sums + torch.stack([torch.where(is_number, values, 0), is_number.float()]) * len(batch)
            if done + 1 == last_of_step:
                self._step((self.epoch - 1) * steps + step, steps)
            yield done + 1, num_batches
        # The only transfer of losses from the device: one a step would stall the GPU.
        assert isinstance(sums, Tensor)
        totals, images = sums.tolist()
        means = {
            name: total / count if count else math.nan for name, total, count in zip(names, totals, images, strict=True)
        }
        self.skipped_steps, in_a_row = self.stepper.take_skipped()
        if in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingError(
                "non-finite", f"gradients of {in_a_row} optimiser steps in a row, by the end of epoch {self.epoch}"
            )
        weighted = total_loss(means, config.loss)
        if not math.isfinite(weighted):
            bad = ", ".join(name for name in loss_weights(means, config.loss) if not math.isfinite(means[name]))
            raise TrainingError("non-finite", f"{bad} in epoch {self.epoch}")
        self.losses = means | {"loss": weighted}

    def _step(self, step: int, steps_per_epoch: int) -> None:
        """Change the weights by the gathered gradients; ``step`` counts the run's optimiser steps from 0."""
        config = self.config
        decays = self._decays(self.epoch - 1)
        self.learning_rate = learning_rate(config.optim, step, steps_per_epoch, config.train.epochs, decays)
        self.stepper.step(self.learning_rate)
        if self.average is not None:
            self.average.update(self.model, step)

    def validate(self) -> "Future[dict[str, float]]":
        """Start to compute the metrics of the judged model on the validation images, see :class:`Validation`; none
        where no image validates."""
        torch.backends.cudnn.benchmark = False
        if not self.split.validation:
            nothing: Future[dict[str, float]] = Future()
            nothing.set_result({})
            return nothing
        return self.validation.start(self.judged_model, self.stepper.amp_dtype, self.epoch)

    def ending(self) -> Ending | None:
        """Return why the run is over, or None."""
        train, optim = self.config.train, self.config.optim
        if self.judged_epoch >= train.epochs:
            return "epochs"
        if train.patience is not None and self.judged_epoch - self.best_epoch >= train.patience:
            return "patience"
        if optim.schedule == "plateau" and train.stop_after_decays is not None:
            without_gain = self._decays(self.judged_epoch) - self._decays(self.best_epoch)
            return "patience" if without_gain >= train.stop_after_decays else None
        return None

    def conclude(self, seconds: float) -> TrainedEpoch:
        """Validate the epoch whose training has just ended, after ``seconds``, and capture its state."""
        started = time.perf_counter()
        metrics = self.validate()
        # The next epoch may change the weights before they are written.
        beside = self.overlaps or self.saves_beside
        states = Snapshot(self._states()).states if beside else self._states
        return TrainedEpoch(
            epoch=self.epoch,
            losses=self.losses,
            skipped_steps=self.skipped_steps,
            learning_rate=self.learning_rate,
            images_per_second=len(self.split.training) / seconds,
            seconds=seconds + time.perf_counter() - started,
            metrics=metrics,
            states=states,
        )

    def judge(self, trained: TrainedEpoch) -> JudgedEpoch:
        """Wait for the metrics of an epoch, update the best epoch and the plateau values, and start to write the
        checkpoints.

        Call it for each epoch in turn, and :meth:`report` before the next.
        """
        started = time.perf_counter()
        metrics = trained.metrics.result()
        metric = self.config.train.metric
        value = metrics[metric] if self.split.validation else None
        self.judged_epoch = trained.epoch
        # Without validation nothing says that an earlier epoch is better than the last.
        improved = value is None or self.best_value is None or gain(metric, value) > gain(metric, self.best_value)
        if improved:
            self.best_value, self.best_epoch = value, trained.epoch
        self.watched.append(watched_gain(self.config, trained.losses, metrics))
        report = EpochReport(
            epoch=trained.epoch,
            losses=trained.losses,
            skipped_steps=trained.skipped_steps,
            metrics=metrics,
            value=value,
            best_value=self.best_value,
            best_epoch=self.best_epoch,
            learning_rate=trained.learning_rate,
            seconds=trained.seconds + time.perf_counter() - started,
            images_per_second=trained.images_per_second,
            peak_memory_bytes=peak_memory(self.device),
            micro_batch=self.stepper.micro_batch,
            parameters=self.parameters,
            ending=self.ending(),
        )
        self.reports.append(asdict(report))
        saved = self._writer.submit(
            self._save, trained.states, self._description(trained, metrics), self._memory(), improved
        )
        return JudgedEpoch(report, saved)

    def report(self, judged: JudgedEpoch) -> EpochReport:
        """Return the report of an epoch once its checkpoints are on disk: a report promises them.

        Raises:
            UserError: they cannot be written.
            SupersededError: another process has begun to train in the folder.
        """
        started = time.perf_counter()
        judged.saved.result()
        return replace(judged.report, seconds=judged.report.seconds + time.perf_counter() - started)

    def _states(self) -> dict[str, Any]:
        """Collect the states to save. Their tensors change with the next step."""
        return {
            "judged": self.judged_model.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "skipped_in_a_row": self.stepper.skipped_in_a_row,
            # A checkpoint's weights are those its metrics were measured with. Those that train on may be others.
            "model": None if self.average is None else self.model.state_dict(),
        }

    def _description(self, trained: TrainedEpoch, metrics: dict[str, float]) -> dict[str, Any]:
        """Return the description of an epoch's checkpoints."""
        return {
            "config": self.config.to_flat(),
            "class_names": self.data.class_names,
            "category_ids": self.data.category_ids,
            "metric": self.config.train.metric,
            "value": metrics.get(self.config.train.metric),
            "epoch": trained.epoch,
            "metrics": metrics,
            "parameters": count_parameters(self.model),
            "data_fingerprint": self.data.fingerprint,
        }

    def _memory(self) -> dict[str, Any]:
        """Return a copy of the history that a resumed run needs."""
        return {
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "watched": list(self.watched),
            REPORTS: list(self.reports),
        }

    def _save(
        self, states: Callable[[], dict[str, Any]], description: dict[str, Any], memory: dict[str, Any], improved: bool
    ) -> None:
        """Write the checkpoints of an epoch, in a thread that reads no changing state of the run."""
        training = states()
        weights = training.pop("judged")
        best = self.folder / BEST
        if improved:
            save_checkpoint(best, weights, claim=self._claim, **description)
        twin = best if improved else None
        save_checkpoint(
            self.folder / LAST,
            weights,
            training=training | memory,
            twin=twin,
            claim=self._claim,
            **description,
        )

    def resume(self) -> None:
        """Claim the folder, and continue from ``folder/last`` if it exists.

        Raises:
            UserError: that run had other settings or other data.
        """
        self._claim = Claim(self.folder / LAST / OWNER)
        if not has_checkpoint(self.folder / LAST):
            return
        checkpoint = open_checkpoint(self.folder / LAST)
        own, former = self.config.to_flat(), checkpoint.config.to_flat()
        changed = sorted(key for key, value in own.items() if former[key] != value)
        # The location of the data and the number of loader processes do not affect the results.
        changed = [key for key in changed if key not in {"data.root", "train.workers"}]
        if checkpoint.info.data_fingerprint != self.data.fingerprint:
            changed.append("the data")
        if changed:
            raise UserError(
                f"{self.folder}: holds a run to be resumed with the same settings, but {', '.join(changed)} changed. "
                "Choose another folder, or delete this one."
            )
        training = checkpoint.load_training()
        assert training is not None
        self.judged_model.load_state_dict(checkpoint.load_weights())
        if self.average is not None:
            self.model.load_state_dict(training["model"])
        self.stepper.optimizer.load_state_dict(training["optimizer"])
        if training["scaler"]:  # empty where that run needed none
            self.stepper.scaler.load_state_dict(training["scaler"])
        self.stepper.skipped_in_a_row = training.get("skipped_in_a_row", 0)
        self.best_value, self.best_epoch = training["best_value"], training["best_epoch"]
        self.watched = training["watched"]
        self.reports = training.get(REPORTS, [])  # checkpoints of earlier versions have none
        self.epoch = self.judged_epoch = checkpoint.info.epoch

    def close(self) -> None:
        """Cancel pending validations and finish writing checkpoints."""
        self.validation.close()
        self._writer.shutdown()
        torch.backends.cudnn.benchmark = False

    def _decays(self, epochs: int) -> int:
        """Count how often plateau has lowered the rate by the end of this many epochs."""
        optim = self.config.optim
        return num_decays(self.watched[:epochs], optim.warmup_epochs, optim.plateau_patience)


def shapes_repeat(data: PackedDataset, indices: tuple[int, ...], config: TrialConfig) -> bool:
    """Whether training batches have few shapes: all images are cropped, or come in at most ``FEW_SHAPES`` sizes."""
    if config.data.crop is not None:
        return True
    sizes = {scaled_size(height, width, config.data) for height, width in data.sizes[[*indices]].tolist()}
    return config.data.train_scale_min == 1 and len(sizes) <= FEW_SHAPES


def _require_watchable(config: TrialConfig) -> None:
    """Refuse a schedule that follows figures of validation where there is none."""
    if config.data.train_on == "unvalidated" and config.optim.schedule == "plateau":
        watched = config.optim.plateau_watch
        if watched != "training-loss":
            raise UserError(
                "optim.plateau_watch: must be training-loss where no image validates (data.train_on=unvalidated), but "
                f"got {watched}. Set optim.plateau_watch=training-loss, or another optim.schedule."
            )


def watched_gain(config: TrialConfig, losses: dict[str, float], metrics: dict[str, float]) -> float:
    """Return the value of ``optim.plateau_watch`` for one epoch, sign-adjusted so that larger is better.

    ``metrics``: empty without validation; then it is the training loss.
    """
    if not metrics:
        return -losses["loss"]
    match config.optim.plateau_watch:
        case "metric":
            return gain(config.train.metric, metrics[config.train.metric])
        case "training-loss":
            return -losses["loss"]
        case "validation-loss":
            return -metrics["loss/validation"]
