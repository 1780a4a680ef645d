"""The state of a training run between epochs, and how an epoch changes it. The loop over epochs is in train.py."""

import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cellseg.auto import resolve_auto
from cellseg.checkpoint import has_checkpoint, open_checkpoint, save_checkpoint
from cellseg.config import TrialConfig
from cellseg.data.loader import training_loader
from cellseg.data.packed import PackedDataset
from cellseg.data.split import split
from cellseg.detections import Detections
from cellseg.device import pick_device
from cellseg.errors import UserError
from cellseg.evaluate import evaluate
from cellseg.model.build import build_model, count_parameters
from cellseg.optim import build_optimizer, learning_rate, set_learning_rate
from cellseg.predict import predict_images
from cellseg.report import Ending, TrainingError

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
        amp = config.train.amp if self.device.type == "cuda" else "off"
        self.amp_dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        # Only float16 has too few exponent bits for gradients; disabled, the scaler passes everything through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp == "fp16")
        self.epoch = self.best_epoch = 0
        self.best_value = -math.inf

    def train_epoch(self, on_step: Callable[[int, int], None] | None) -> dict[str, float]:
        """One pass over the training images; the mean losses."""
        config = self.config
        # Proposals are sampled with torch's global generator. Seeding it by epoch makes resuming exact.
        torch.manual_seed(config.train.seed + 1_000_003 * self.epoch)
        self.batches.epoch = self.epoch
        self.model.train()
        sums: dict[str, Tensor] = {}
        steps = len(self.batches)
        for step, batch in enumerate(self.loader):
            overall_step = (self.epoch - 1) * steps + step
            set_learning_rate(self.optimizer, learning_rate(config.optim, overall_step, steps, config.train.epochs))
            losses = self._train_step(batch)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
            if on_step is not None:
                on_step(step + 1, steps)
        # The only transfer of losses from the device: one a step would stall the GPU.
        means = {name: float(total) / steps for name, total in sums.items()}
        means["loss"] = sum(means.values())
        if not math.isfinite(means["loss"]):
            bad = ", ".join(name for name, mean in means.items() if not math.isfinite(mean) and name != "loss")
            raise TrainingError("non-finite", f"{bad} in epoch {self.epoch}")
        return means

    def _train_step(self, batch: list) -> dict[str, Tensor]:
        images = [image.to(self.device, non_blocking=True).float() / 255 for image, _ in batch]
        targets = [{k: v.to(self.device, non_blocking=True) for k, v in target.items()} for _, target in batch]
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            losses = self.model(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(sum(losses.values())).backward()
        if self.config.optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return losses

    def validate(self) -> dict[str, float]:
        """Metrics of the model on the validation images."""
        images = (self.data[index].image_HWC for index in self.split.validation)
        predictions = predict_images(self.model, images, self.config)
        return evaluate(predictions, self.truths, self.data.class_names)

    def ending(self) -> Ending | None:
        """Why the run is over, or None."""
        train = self.config.train
        if self.epoch >= train.epochs:
            return "epochs"
        if train.patience is not None and self.epoch - self.best_epoch >= train.patience:
            return "patience"
        return None

    def remember(self, metrics: dict[str, float]) -> None:
        """Update the best epoch and write the checkpoints."""
        value = metrics[self.config.train.metric]
        improved = value > self.best_value
        if improved:
            self.best_value, self.best_epoch = value, self.epoch
        description: dict[str, Any] = {
            "config": self.config.to_flat(),
            "class_names": self.data.class_names,
            "metric": self.config.train.metric,
            "value": value,
            "epoch": self.epoch,
            "metrics": metrics,
            "parameters": count_parameters(self.model),
            "data_fingerprint": self.data.fingerprint,
        }
        if improved:
            save_checkpoint(self.folder / BEST, self.model, **description)
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
        }
        save_checkpoint(self.folder / LAST, self.model, training=training, **description)

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
        self.model.load_state_dict(checkpoint.load_weights())
        self.optimizer.load_state_dict(training["optimizer"])
        if training["scaler"]:  # empty where that run needed none
            self.scaler.load_state_dict(training["scaler"])
        self.best_value, self.best_epoch = training["best_value"], training["best_epoch"]
        self.epoch = checkpoint.info.epoch


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
