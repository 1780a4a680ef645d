"""Cost of a piece of work for a GPU's host, counted on any device: kernel launches and waits.

Operators are counted as torch dispatches them, behind autograd and autocast. One that makes or moves values is a
launch; views and allocations are none. A GPU may take a few kernels for one, so launches are a lower bound.

A wait is an operator whose result the host must see before it can go on: a number read, a shape that depends on values,
a tensor made of Python numbers (which is copied to a GPU from memory that must not change meanwhile).
"""

from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cellseg.model import waiting

WAITS = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "bincount",
    "equal",
    "lift_fresh",
    "masked_select",
    "nms",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
}
"""Operators, by name without overload, that always make the host wait."""

NO_KERNEL = {"detach", "empty", "empty_like", "empty_strided", "is_same_size", "new_empty", "new_empty_strided"}
"""Operators beside views that compute nothing."""

TO_HOST = ("cpu", "tolist")
"""Methods of a tensor that hand its values to the host; on a CPU they dispatch nothing, so they are watched."""


class Operators(TorchDispatchMode):
    """Counts what is dispatched within its context."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        """Operators that launch a kernel, by name."""
        self.waited: Counter[str] = Counter()
        """Operators and methods that make the host wait, by name."""
        self._methods: dict[str, Callable[..., Any]] = {}

    @property
    def launches(self) -> int:
        return self.launched.total()

    @property
    def waits(self) -> int:
        return self.waited.total()

    def __enter__(self) -> Self:
        for name in TO_HOST:
            self._methods[name] = getattr(Tensor, name)
            setattr(Tensor, name, self._watched(name))
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, method in self._methods.items():
            setattr(Tensor, name, method)
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in WAITS or _depends_on_a_mask(name, args) or _repeats_unknown(name, args, kwargs):
            self.waited[name] += 1
        if not _is_view(func) and name not in NO_KERNEL:
            self.launched[name] += 1
        return func(*args, **kwargs)

    def _watched(self, name: str) -> Callable[..., Any]:
        method = self._methods[name]

        def to_host(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.waited[name] += 1
            return method(tensor, *args, **kwargs)

        return to_host


def count_as_on_a_gpu(work: Callable[[], Any]) -> Operators:
    """Count the operators of ``work`` on its GPU code path, whatever device it runs on: see
    :mod:`cellseg.model.waiting`."""
    original = waiting.may_wait
    waiting.may_wait = lambda device: False
    try:
        with Operators() as counted:
            work()
    finally:
        waiting.may_wait = original
    return counted


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)


def _depends_on_a_mask(name: str, args: Any) -> bool:
    """Whether values are picked by a mask, whose ``True`` must be counted first. One value for all is filled in."""
    if name not in {"index", "index_put", "index_put_", "_index_put_impl_"}:
        return False
    masked = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return masked and (name == "index" or args[2].numel() > 1)


def _repeats_unknown(name: str, args: Any, kwargs: Any) -> bool:
    return name == "repeat_interleave" and kwargs.get("output_size") is None
