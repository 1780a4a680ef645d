"""Optimiser steps: batches become gradients, and gradients change the weights. Epochs are in run.py."""

import torch
from torch import Tensor, nn

from cellseg.config import TrialConfig
from cellseg.data.batch import Item
from cellseg.device import autocast_dtype
from cellseg.errors import UserError
from cellseg.model.norms import keep_half_precision
from cellseg.training.loss_weights import total_loss
from cellseg.training.optim import begin_momentum, build_optimizer, set_learning_rate

MOST_SKIPPED_IN_A_ROW = 20
"""Optimiser steps. float16 starts with losses scaled by 2^16 and halves the scale at each skipped step: after 16 of
them, no scale helps."""


class Stepper:
    """A model that trains on ``device``, with its optimiser.

    Call :meth:`add_gradients` for each batch of a step, then :meth:`step`. Neither waits for a GPU to tell a loss, nor
    whether its gradients are numbers.
    """

    def __init__(self, model: nn.Module, config: TrialConfig, device: torch.device, micro_batch: int | None = None):
        """``micro_batch``: most images that go through the network at a time. None: the whole batch."""
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
        if self.amp_dtype is not None:
            keep_half_precision(self.model)
        # Only float16 has too few exponent bits for gradients; disabled, the scaler passes everything through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype is torch.float16)
        self._skipped_3 = torch.zeros(3, device=device)
        """Steps skipped since the last call of :meth:`take_skipped`, those in a row now, and the most in a row."""

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
        """Update the weights with the accumulated gradients, and clear these.

        Where a gradient is not finite, weights and moments stay as they are. The host does not learn of it before it
        asks for :meth:`take_skipped`.
        """
        set_learning_rate(self.optimizer, learning_rate)
        begin_momentum(self.optimizer)
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_norm, norm)
        is_skipped = (~torch.isfinite(norm)).float()
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # looks for itself
        else:
            self.optimizer.found_inf = is_skipped  # type: ignore[attr-defined]  # as the scaler tells fused optimisers
            self.optimizer.step()
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        total, in_a_row, most = self._skipped_3.unbind()
        in_a_row = (in_a_row + 1) * is_skipped
        self._skipped_3 = torch.stack([total + is_skipped, in_a_row, torch.maximum(most, in_a_row)])

    @property
    def skipped_in_a_row(self) -> int:
        """Number of steps skipped in a row up to now. Waits for the device."""
        return int(self._skipped_3[1])

    @skipped_in_a_row.setter
    def skipped_in_a_row(self, count: int) -> None:
        self._skipped_3 = torch.tensor([0.0, count, count], device=self.device)

    def take_skipped(self) -> tuple[int, int]:
        """Return the steps skipped since the last call, and the most of them in a row. Waits for the device."""
        total, in_a_row, most = (int(value) for value in self._skipped_3.tolist())
        self.skipped_in_a_row = in_a_row
        return total, most

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
