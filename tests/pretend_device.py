"""A device that is not there: tensors that say ``cuda`` and are computed on the CPU.

Mixing them with tensors of the CPU fails as it does on a GPU, so that code for a GPU can be tried,
to the bit, where there is none. Speed, streams and the CUDA kernels themselves it does not try.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

DEVICE = torch.device("meta")
aten = torch.ops.aten
# As on a GPU, these take indices or a number from the CPU.
MIXED = (aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default)
MIXED += (aten.copy_.default, aten.index_put.default)


class Pretended(Tensor):
    """A tensor that says it is on the GPU; its numbers are in ``inner``, on the CPU."""

    @staticmethod
    def __new__(cls, real: Tensor) -> "Pretended":
        shape = {"strides": real.stride(), "storage_offset": real.storage_offset()}
        return Tensor._make_wrapper_subclass(
            cls, real.shape, dtype=real.dtype, device=DEVICE, **shape
        )

    def __init__(self, real: Tensor) -> None:
        self.inner = real

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return _run(op, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return _run(op, args, kwargs or {})


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Inside, ``the device`` is a device: the one that is yielded."""
    fused = "torch.optim.optimizer._get_fused_kernels_supported_devices"
    with patch(fused, return_value=["cpu", DEVICE.type]), patch("torch.tensor", _tensor), _Mode():
        yield DEVICE


def _tensor(values: Any, *, device: Any = None, make: Any = torch.tensor, **options: Any) -> Tensor:
    """``torch.tensor``, which has a way of its own to the meta device."""
    made = make(values, **options)
    return made if device is None else made.to(device)


def _run(op: Any, args: tuple, kwargs: dict) -> Any:
    wanted = kwargs.get("device")
    there = _tensors((args, kwargs))
    on_device = [value for value in there if isinstance(value, Pretended)]
    if on_device and op not in MIXED:
        for value in there:
            if not isinstance(value, Pretended) and value.dim():
                raise RuntimeError(
                    f"{op}: tensors on the device and {list(value.shape)} on the cpu"
                )
    if op in MIXED and not isinstance(args[0], Pretended) and op is not aten.copy_.default:
        assert not on_device, f"{op}: a tensor on the cpu indexed by one on the device"
    if on_device and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{op}: a generator of the cpu for a tensor on the device")
    real = {name: value for name, value in kwargs.items() if name != "device"}
    if wanted is not None:
        real["device"] = torch.device("cpu")
    real_args, real = tree_map_only(Pretended, lambda value: value.inner, (args, real))
    result = op(*real_args, **real)
    to_device = bool(on_device) if wanted is None else torch.device(wanted).type == DEVICE.type
    if op is aten.copy_.default:
        to_device = isinstance(args[0], Pretended)
    if not to_device:
        return result
    wrapped = tree_map_only(Tensor, Pretended, result)
    return return_and_correct_aliasing(op, args, kwargs, wrapped)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, tree)
    return found
