"""Training items, and batches of them joined in one tensor for the way between processes."""

from dataclasses import dataclass

import torch
from torch import Tensor

Item = tuple[Tensor, dict[str, Tensor]]
"""A (3, H, W) uint8 image and its target (:func:`cellseg.data.targets.make_target`)."""

IMAGE = "image"

ALIGNMENT = 16
"""Bytes: where tensors start in a :class:`JoinedBatch`, a multiple of the size of every type of value."""


Place = tuple[int, torch.dtype, torch.Size]
"""First byte, type and shape of a tensor in a :class:`JoinedBatch`."""


@dataclass(frozen=True)
class JoinedBatch:
    """A batch in one tensor, to pass from a loader process to the training process.

    Every tensor on this way costs an open file and a connection. With six tensors per image that would take as long as
    the augmentation, and a few workers with large batches would run out of files.
    """

    bytes_B: Tensor
    """(B,) uint8: the values of all tensors."""
    places: list[dict[str, Place]]
    """For each item where its tensors lie, by their names in its target; the image is called IMAGE."""

    @classmethod
    def of(cls, items: list[Item]) -> "JoinedBatch":
        """Copy ``items`` into one batch."""
        named = [{IMAGE: image_CHW, **target} for image_CHW, target in items]
        places: list[dict[str, Place]] = []
        size = 0
        for tensors in named:
            places.append({})
            for name, tensor in tensors.items():
                places[-1][name] = size, tensor.dtype, tensor.shape
                size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        joined = cls(torch.empty(size, dtype=torch.uint8), places)
        for tensors, places_of_item in zip(named, places, strict=True):
            for name, tensor in tensors.items():
                joined._view(places_of_item[name]).copy_(tensor)
        return joined

    def items(self) -> list[Item]:
        """Return the joined items as views."""
        named = [{name: self._view(place) for name, place in places.items()} for places in self.places]
        return [(tensors.pop(IMAGE), tensors) for tensors in named]

    def pin_memory(self) -> "JoinedBatch":
        """Copy this batch into pinned memory; torch's loader looks for this method."""
        return JoinedBatch(self.bytes_B.pin_memory(), self.places)

    def _view(self, place: Place) -> Tensor:
        start, dtype, shape = place
        return self.bytes_B[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
