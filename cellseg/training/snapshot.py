"""Snapshots of an epoch's state, unaffected by the next epoch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cellseg.device import exhausted_memory


class Snapshot:
    """A copy of state dicts in the memory of this machine.

    Copies from a GPU are asynchronous: they go into pinned memory and are ordered before every later change, so
    neither the GPU nor the caller waits. :meth:`states` does.
    """

    def __init__(self, states: Mapping[str, Any]):
        self._devices: set[torch.device] = set()
        self._states = {name: self._copy(state) for name, state in states.items()}
        self._events = [torch.cuda.current_stream(device).record_event() for device in self._devices]

    def states(self) -> dict[str, Any]:
        """The copy, complete. May be called in another thread."""
        for event in self._events:
            event.synchronize()
        return self._states

    def _copy(self, state: Any) -> Any:
        if isinstance(state, Tensor):
            return self._copy_tensor(state.detach())
        if isinstance(state, dict):
            return {key: self._copy(value) for key, value in state.items()}
        if isinstance(state, list):
            return [self._copy(value) for value in state]
        return state

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.clone()
        try:
            pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
        except Exception as error:
            if exhausted_memory(error) is None:
                raise
            return tensor.cpu()  # pinned memory is scarcer than pageable memory
        self._devices.add(tensor.device)
        return pinned.copy_(tensor, non_blocking=True)
