"""Turns: methods of an object that several threads call, one at a time."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class HasLock(Protocol):
    """An object whose methods take turns."""

    @property
    def lock(self) -> threading.RLock: ...


_S = TypeVar("_S", bound=HasLock)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_turn(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """Let no two threads run decorated methods of one object at the same time; a method may call another."""

    @wraps(method)
    def locked(self: _S, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked
