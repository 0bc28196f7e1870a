"""The processes ("ranks") of one run, as torchrun starts them; without it all here is the identity.

Every rank runs the same program and holds everything; what costs time is cut into shares. A rank
that dies ends the run: torchrun watches them, and a sum that waits for one gives up after
``PATIENCE``. Waiting for a rank that has more work (:func:`meet`) has no limit.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from gsdd_lib.core.errors import GsddError

PATIENCE = timedelta(minutes=5)
INTEGERS = {4: torch.int32, 8: torch.int64}  # by the bytes of a number
_alone = ContextVar("alone", default=False)


class RankError(GsddError, RuntimeError):
    """Another rank has died or hangs; the message says how to go on."""


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """How many processes there are; inside of :func:`spread` each is on its own."""
    return 1 if _alone.get() else int(os.environ.get("WORLD_SIZE", 1))


def share(items: Any) -> Any:
    """What of a sequence or a tensor is this rank's: every ``world()``-th."""
    return items[rank() :: world()]


def meet() -> None:
    """Wait until every rank is here, however long that takes."""
    if world() > 1:
        store = _join()
        with _answered():
            came = store.add("met", 1)
            everyone = -(-came // world()) * world()  # none comes again before all have come
            while store.add("met", 0) < everyone:
                time.sleep(0.02)


def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """``[function(item) for item in items]``, each by one rank, the whole list on all.

    An error of the library on one rank is raised on all of them.
    """
    if world() == 1:
        return [function(item) for item in items]
    mine, found, failure, outside = share(items), [], None, _alone.set(True)
    try:
        found.extend(map(function, mine))
    except GsddError as error:
        failure = error
    finally:
        _alone.reset(outside)
    meet()
    everywhere: list[Any] = [None] * world()
    with _answered():
        dist.all_gather_object(everywhere, (found, failure))
    for _, error in everywhere:
        if error is not None:
            raise error
    return [everywhere[at % world()][0][at // world()] for at in range(len(items))]


def spread_groups(
    function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any], size: int
) -> list[Any]:
    """As :func:`spread`, of a function that takes up to ``size`` items at once."""
    size = max(1, min(size, -(-len(items) // world())))  # no rank idles
    groups = [items[first : first + size] for first in range(0, len(items), size)]
    return [result for results in spread(function, groups) for result in results]


def combine(*tensors: Tensor) -> None:
    """Fill in, bit for bit, what other ranks have: each number is 0 on all ranks but one."""
    for tensor in tensors if world() > 1 else ():
        _reduce(tensor.view(INTEGERS[tensor.element_size()]))  # a sum of integers is exact


def agree(*tensors: Tensor) -> None:
    """Give all ranks the first one's numbers: a GPU's sums may differ from one to the next."""
    for tensor in tensors if world() > 1 else ():
        _join()
        with _answered():
            dist.broadcast(tensor.detach(), 0)


def fan_out(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors, of which each rank uses a share; their gradients are summed over ranks."""
    return _FanOut.apply(*tensors) if world() > 1 else tensors


def sum_up(tensor: Tensor) -> Tensor:
    """The sum over ranks, which all use alike; its gradient goes back as it is."""
    return _SumUp.apply(tensor) if world() > 1 else tensor


class _FanOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(grads, ctx.needs_input_grad, strict=True)
        return tuple(_reduce(grad.contiguous().clone()) if need else None for grad, need in needed)


class _SumUp(torch.autograd.Function):
    forward = staticmethod(lambda ctx, tensor: _reduce(tensor.contiguous().clone()))
    backward = staticmethod(lambda ctx, gradient: gradient)


def _reduce(tensor: Tensor) -> Tensor:
    _join()
    with _answered():
        dist.all_reduce(tensor)
    return tensor


@cache
def _join() -> dist.Store:
    """Join the other ranks, once; returns the store that torchrun keeps for them."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    with _answered():
        store, own, count = next(dist.rendezvous("env://", timeout=PATIENCE))
        about = {"rank": own, "world_size": count, "timeout": PATIENCE}
        kind = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(kind, store=dist.PrefixStore("group", store), **about)
    return store


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            "another process of this run has died or no longer answers; the same command goes on "
            "from the last checkpoint"
        ) from error
