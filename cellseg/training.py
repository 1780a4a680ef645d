"""The state of a training run between epochs, and how an epoch changes it. The loop over epochs is in train.py."""

import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellseg.auto import resolve_auto
from cellseg.checkpoint import has_checkpoint, open_checkpoint, save_checkpoint
from cellseg.config import TrialConfig, gain
from cellseg.data.loader import Item, plain_item, training_loader
from cellseg.data.packed import PackedDataset
from cellseg.data.split import split
from cellseg.detections import Detections
from cellseg.device import pick_device
from cellseg.ema import WeightAverage
from cellseg.errors import UserError
from cellseg.evaluate import evaluate
from cellseg.losses import loss_weights, total_loss
from cellseg.model.build import build_model, count_parameters
from cellseg.optim import build_optimizer, set_learning_rate
from cellseg.predict import predict_images
from cellseg.report import Ending, TrainingError
from cellseg.schedule import learning_rate, num_decays
from cellseg.validation import validation_loss

BEST, LAST = "best", "last"
"""Checkpoint folders inside a run's folder: the best epoch for predicting, the last one for resuming."""


class TrainingRun:
    """The state of one training run between epochs."""

    def __init__(self, config: TrialConfig, data: PackedDataset, folder: Path, device: torch.device | None):
        self.config = config = resolve_auto(config, data)
        self.data = data
        self.folder = folder
        self.device = device or pick_device()
        self.split = split(data.label_counts, config.data)
        self.loader, self.batches = training_loader(data, self.split.training, config)
        self.truths = [Detections.from_sample(data[index]) for index in self.split.validation]
        torch.manual_seed(config.train.seed)
        self.model = build_model(config.model, config.inference, data.num_classes).to(self.device)
        self.parameters = count_parameters(self.model, trainable=True)
        self.optimizer = build_optimizer(self.model, config.optim)
        ema_decay = config.optim.ema_decay
        self.average = WeightAverage(self.model, ema_decay) if ema_decay is not None else None
        self.amp_dtype = autocast_dtype(config.train.amp, self.device)
        # Only float16 has too few exponent bits for gradients; disabled, the scaler passes everything through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)
        self.epoch = self.best_epoch = 0
        self.best_value = gain(config.train.metric, -math.inf)
        self.watched: list[float] = []
        """What ``optim.plateau_watch`` names, of each epoch so far, as a number of which larger is better."""
        self.learning_rate = config.optim.lr
        """Of the last optimiser step; the backbone's may be a share of it."""

    @property
    def judged_model(self) -> nn.Module:
        """The model that is validated and saved for predicting: the average, or the one that trains."""
        return self.model if self.average is None else self.average.model

    def train_epoch(self, on_step: Callable[[int, int], None] | None) -> dict[str, float]:
        """One pass over the training images; the mean losses."""
        config = self.config
        # Proposals are sampled with torch's global generator. Seeding it by epoch makes resuming exact.
        torch.manual_seed(config.train.seed + 1_000_003 * self.epoch)
        self.batches.epoch = self.epoch
        self.model.train()
        sums: dict[str, Tensor] = {}
        num_batches, per_step = len(self.batches), config.optim.accumulate_batches
        steps = math.ceil(num_batches / per_step)
        for done, batch in enumerate(self.loader):
            step = done // per_step
            last_of_step = min((step + 1) * per_step, num_batches)  # the epoch's last step may have fewer batches
            losses = self._add_gradients(batch, 1 / (last_of_step - step * per_step))
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
            if done + 1 == last_of_step:
                self._step((self.epoch - 1) * steps + step, steps)
            if on_step is not None:
                on_step(done + 1, num_batches)
        # The only transfer of losses from the device: one a step would stall the GPU.
        means = {name: float(total) / num_batches for name, total in sums.items()}
        weighted = total_loss(means, config.loss)
        if not math.isfinite(weighted):
            bad = ", ".join(name for name in loss_weights(means, config.loss) if not math.isfinite(means[name]))
            raise TrainingError("non-finite", f"{bad} in epoch {self.epoch}")
        return means | {"loss": weighted}

    def _add_gradients(self, batch: list[Item], share: float) -> dict[str, Tensor]:
        """Add ``share`` of the batch's gradients to those of the step; its losses, unweighted."""
        images = [image.to(self.device, non_blocking=True).float() / 255 for image, _ in batch]
        targets = [{k: v.to(self.device, non_blocking=True) for k, v in target.items()} for _, target in batch]
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model(images, targets)
        self.scaler.scale(total_loss(losses, self.config.loss) * share).backward()
        return losses

    def _step(self, step: int, steps_per_epoch: int) -> None:
        """Change the weights by the gathered gradients; ``step`` counts the run's optimiser steps from 0."""
        config = self.config
        decays = self._decays(self.epoch - 1)
        self.learning_rate = learning_rate(config.optim, step, steps_per_epoch, config.train.epochs, decays)
        set_learning_rate(self.optimizer, self.learning_rate)
        if config.optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, step)

    def validate(self) -> dict[str, float]:
        """Metrics of the judged model on the validation images: those of :func:`cellseg.evaluate.evaluate`,
        ``loss/validation``, and the totals ``count/detections`` and ``count/cells``."""
        model, config = self.judged_model, self.config
        samples = [self.data[index] for index in self.split.validation]  # views into the table
        predictions = predict_images(model, (sample.image_HWC for sample in samples), config)
        items = (plain_item(sample, config.data) for sample in samples)
        loss = validation_loss(model, items, config.loss, self.amp_dtype)
        if not math.isfinite(loss):
            raise TrainingError("non-finite", f"loss/validation in epoch {self.epoch}")
        return {
            **evaluate(predictions, self.truths, self.data.class_names),
            "loss/validation": loss,
            "count/detections": float(sum(map(len, predictions))),
            "count/cells": float(sum(map(len, self.truths))),
        }

    def ending(self) -> Ending | None:
        """Why the run is over, or None."""
        train, optim = self.config.train, self.config.optim
        if self.epoch >= train.epochs:
            return "epochs"
        if train.patience is not None and self.epoch - self.best_epoch >= train.patience:
            return "patience"
        if optim.schedule == "plateau" and train.stop_after_decays is not None:
            without_gain = self._decays(self.epoch) - self._decays(self.best_epoch)
            return "patience" if without_gain >= train.stop_after_decays else None
        return None

    def remember(self, losses: dict[str, float], metrics: dict[str, float]) -> None:
        """Update the best epoch and what plateaus watch, and write the checkpoints."""
        metric, value = self.config.train.metric, metrics[self.config.train.metric]
        improved = gain(metric, value) > gain(metric, self.best_value)
        if improved:
            self.best_value, self.best_epoch = value, self.epoch
        self.watched.append(watched_gain(self.config, losses, metrics))
        description: dict[str, Any] = {
            "config": self.config.to_flat(),
            "class_names": self.data.class_names,
            "metric": metric,
            "value": value,
            "epoch": self.epoch,
            "metrics": metrics,
            "parameters": count_parameters(self.model),
            "data_fingerprint": self.data.fingerprint,
        }
        if improved:
            save_checkpoint(self.folder / BEST, self.judged_model, **description)
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "watched": self.watched,
            # A checkpoint's weights are those its metrics were measured with. Those that train on may be others.
            "model": None if self.average is None else self.model.state_dict(),
        }
        save_checkpoint(self.folder / LAST, self.judged_model, training=training, **description)

    def resume(self) -> None:
        """Go on from ``folder/last`` if it is there.

        Raises:
            UserError: that run had other settings or other data.
        """
        if not has_checkpoint(self.folder / LAST):
            return
        checkpoint = open_checkpoint(self.folder / LAST)
        own = self.config.to_flat()
        changed = sorted(key for key, value in own.items() if checkpoint.info.config.get(key) != value)
        # Where the data lie and how many processes load them changes nothing about the run.
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
        self.optimizer.load_state_dict(training["optimizer"])
        if training["scaler"]:  # empty where that run needed none
            self.scaler.load_state_dict(training["scaler"])
        self.best_value, self.best_epoch = training["best_value"], training["best_epoch"]
        self.watched = training["watched"]
        self.epoch = checkpoint.info.epoch

    def _decays(self, epochs: int) -> int:
        """How often plateau has lowered the rate by the end of so many epochs."""
        optim = self.config.optim
        return num_decays(self.watched[:epochs], optim.warmup_epochs, optim.plateau_patience)


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision that ``train.amp`` asks for on ``device``; None for float32, as always on a CPU."""
    if device.type != "cuda":
        return None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def watched_gain(config: TrialConfig, losses: dict[str, float], metrics: dict[str, float]) -> float:
    """What ``optim.plateau_watch`` names, of one epoch, as a number of which larger is better."""
    match config.optim.plateau_watch:
        case "metric":
            return gain(config.train.metric, metrics[config.train.metric])
        case "training-loss":
            return -losses["loss"]
        case "validation-loss":
            return -metrics["loss/validation"]


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
