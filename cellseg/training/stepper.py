"""Optimiser steps: batches become gradients, gradients change the weights. Epochs are the business of training.py."""

import torch
from torch import Tensor, nn

from cellseg.config import TrialConfig
from cellseg.data.batch import Item
from cellseg.device import autocast_dtype
from cellseg.errors import UserError
from cellseg.training.loss_weights import total_loss
from cellseg.training.optim import build_optimizer, set_learning_rate


class Stepper:
    """A model that trains on ``device``, with its optimiser.

    Call :meth:`add_gradients` for each batch of a step, then :meth:`step`. Neither waits for a GPU to tell a loss.
    """

    def __init__(self, model: nn.Module, config: TrialConfig, device: torch.device, micro_batch: int | None = None):
        """``micro_batch``: at most so many images go through the network at a time; None: a batch as it comes."""
        self.config = config
        self.device = device
        self.micro_batch = micro_batch or config.train.batch_size
        self.model = model.to(device)
        if device.type == "cuda":  # tensor cores want the channels of a pixel side by side; a CPU gains little
            self.model.to(memory_format=torch.channels_last)
        if config.train.compile:
            self.model.get_submodule("backbone").compile()  # in place: names in the state dict stay
        self.optimizer = build_optimizer(model, config.optim)
        self.amp_dtype = autocast_dtype(config.train.amp, device)
        # Only float16 has too few exponent bits for gradients; disabled, the scaler passes everything through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype is torch.float16)

    def add_gradients(self, batch: list[Item], share: float = 1.0) -> dict[str, Tensor]:
        """Add ``share`` of the batch's gradients to those of the step.

        A batch of more than ``micro_batch`` images goes through the network in parts, whose gradients and losses are
        averaged by their numbers of images. That is what the whole batch gives but for two things: a loss is a mean
        over the anchors or regions sampled in a part, and batch norms see a part at a time.

        Returns:
            The model's losses, unweighted scalars without a graph, on the device.
        """
        sums: dict[str, Tensor] = {}
        for start in range(0, len(batch), self.micro_batch):
            part = batch[start : start + self.micro_batch]
            share_of_part = len(part) / len(batch)
            losses = self._losses(part)
            self.scaler.scale(total_loss(losses, self.config.loss) * (share * share_of_part)).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() * share_of_part
        return sums

    def step(self, learning_rate: float) -> None:
        """Change the weights by the gathered gradients, and forget these."""
        set_learning_rate(self.optimizer, learning_rate)
        if self.config.optim.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self, items: list[Item]) -> dict[str, Tensor]:
        images = [image.to(self.device, non_blocking=True).float() / 255 for image, _ in items]
        targets = [{k: v.to(self.device, non_blocking=True) for k, v in target.items()} for _, target in items]
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return self._compiled(images, targets) if self.config.train.compile else self.model(images, targets)

    def _compiled(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        from torch._dynamo.exc import TorchDynamoException  # here: takes a second, which no other run should pay

        try:
            return self.model(images, targets)
        except TorchDynamoException as error:
            cause = " ".join(str(error).split("\n")[:2])  # the backend, and what it raised
            raise UserError(
                f"train.compile: torch must be able to compile the backbone on this machine, but got '{cause}'. "
                "Install what it asks for, or set train.compile=false."
            ) from error
