"""Reading a pickle of plain containers and numpy arrays, and of nothing else.

A pickle is a program: whatever it names is imported and called. Here the few names by which numpy
writes an array stand for the harmless classes below, and any other name is an error before
anything happens. numpy's own code is never reached.
"""

import io
import math
import pickle
from typing import Any

import numpy as np

from gsdd_lib.data.dataset import DataError

NUMBERS = frozenset({"b1", "u1", "i1", "i2", "i4", "i8", "f4", "f8"})


class _Dtype:
    """Stands for numpy.dtype: numbers alone."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in NUMBERS:
            raise pickle.UnpicklingError(f"an array of type '{code}'")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _Array:
    """Stands for numpy.ndarray while a pickle is read; :func:`_finished` makes the real one."""

    values: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, str | bytes):
            raise pickle.UnpicklingError("an array that is not of numbers")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        flat = np.frombuffer(raw, dtype.order + dtype.code)
        if flat.size != math.prod(shape):
            raise pickle.UnpicklingError("an array of another size than its shape")
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes in old protocols."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"text in '{encoding}'")
    return text.encode("latin1")


ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return ADMITTED[module, name]


def load_plain(content: bytes, *, source: str) -> Any:
    """What the pickle ``content`` holds: numbers, texts, lists, dictionaries and numpy arrays.

    Texts that Python 2 wrote are read as latin-1. Raises :class:`DataError`, with ``source`` as
    the file's name, for a pickle of anything else and for one that is damaged.
    """
    try:
        return _finished(_Unpickler(io.BytesIO(content), encoding="latin1").load())
    except Exception as error:  # a damaged pickle fails in any way
        raise DataError(
            f"{source} is not a pickle of plain containers and numpy arrays"
            f" ({error or type(error).__name__}); fetch it again from its publisher"
        ) from None


def _finished(value: Any) -> Any:
    """``value`` with every stand-in replaced by its array."""
    if isinstance(value, _Array):
        if value.values is None:
            raise pickle.UnpicklingError("an array without values")
        return value.values
    if isinstance(value, dict):
        return {_finished(key): _finished(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finished(part) for part in value)
    if isinstance(value, _Dtype | type):
        raise pickle.UnpicklingError("something that is not data")
    return value
