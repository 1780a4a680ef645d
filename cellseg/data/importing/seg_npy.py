"""Cell ids in Cellpose's ``*_seg.npy``, read without running code from the file.

The file is a pickle of a dict. A pickle names functions and calls them, so whoever wrote it decides what runs. Here
every name in it stands for an object that only remembers how it was made. numpy sees the bytes of one array, at the
end.
"""

import math
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cellseg.data.headers import require_size
from cellseg.errors import UserError

_IDS = re.compile(r"[iub][1248]|bool")
"""Types of arrays that can hold ids, as a pickled dtype names them."""


class _Inert:
    """What a name in the pickle makes: it takes any arguments and any state, and does nothing with them."""

    def __init__(self, *arguments: Any, **_: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Take an item of a list of a class of its own."""

    def extend(self, items: Any) -> None:
        """Take several."""


class _DType(_Inert):
    """A dtype: its name is the first argument, its byte order the second value of its state."""


class _Array(_Inert):
    """An array: its state is (version, shape, dtype, Fortran order, bytes)."""


class _Buffer(_Inert):
    """An array of a newer pickle: its arguments are (bytes, dtype, shape, order)."""


_KNOWN = {"dtype": _DType, "_reconstruct": _Array, "_frombuffer": _Buffer}


class _Unpickler(pickle._Unpickler):
    # In Python, not in C: there a pickle of some bytes can claim gigabytes for its memo.

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 2 could write them
            return lambda text, encoding="latin1": text.encode("latin1") if isinstance(text, str) else text
        return _KNOWN.get(name, _Inert) if module.split(".")[0] == "numpy" else _Inert


def read_seg_npy(path: Path) -> np.ndarray:
    """Read the masks of a ``*_seg.npy`` as (H, W) int64; 0 is background.

    Raises:
        UserError: missing, damaged, without masks, or with masks of a stack.
    """
    try:
        with path.open("rb") as file:
            masks = _read(file, path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: must be a readable file, but got '{error.strerror}'.") from error
    except Exception as error:  # a damaged pickle raises anything
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: must be a file that Cellpose wrote, but got: {detail[:100]}. Save it again."
        ) from error
    masks = np.squeeze(masks)
    if masks.ndim != 2:
        raise UserError(
            f"{path}: must hold the masks of a flat image, but got the shape {masks.shape}. Export single planes."
        )
    if masks.dtype.kind == "i" and masks.min(initial=0) < 0:
        raise UserError(f"{path}: ids must not be negative, but got {masks.min()}. Background is 0.")
    return masks.astype(np.int64)


def _read(file: BinaryIO, path: Path) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if not dtype.hasobject:  # plain ids, saved under the name of Cellpose's files
        return _build(f"{dtype.kind}{dtype.itemsize}", dtype.byteorder, shape, fortran, file.read(), path)
    content = _Unpickler(file).load()
    if isinstance(content, _Array) and isinstance(content.state, tuple):  # numpy wraps the dict in an array of one
        content = content.state[4]
        content = content[0] if isinstance(content, list) and content else content
    masks = content.get("masks") if isinstance(content, dict) else None
    match masks:
        case _Array(state=(_, tuple() as shape, _DType() as kind, fortran, bytes() as data)):
            return _build(*_names(kind), shape, bool(fortran), data, path)
        case _Buffer(arguments=(data, _DType() as kind, tuple() as shape, order)):
            return _build(*_names(kind), shape, order == "F", bytes(data), path)
    raise UserError(f"{path}: must hold 'masks', an array of cell ids, but got none. Save it from Cellpose again.")


def _names(kind: _DType) -> tuple[str, str]:
    """Name and byte order of a pickled dtype."""
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    return str(kind.arguments[0]), order if order in ("<", ">") else "|"


def _build(name: str, order: str, shape: tuple, fortran: bool, data: bytes, path: Path) -> np.ndarray:
    if not _IDS.fullmatch(name):
        raise UserError(f"{path}: masks must be whole numbers, but got the type {name}. Save it from Cellpose again.")
    if not all(isinstance(side, int) and side > 0 for side in shape) or not shape:
        raise UserError(f"{path}: masks must have pixels, but got the shape {shape}.")
    dtype = np.dtype((order if order in ("<", ">") else "=") + ("?" if name in ("bool", "b1") else name))
    require_size(path, shape[-2] if len(shape) > 1 else 1, shape[-1], math.prod(shape[:-2]))
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("the pixels end too early")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
