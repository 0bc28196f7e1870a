"""Sums over micro-batches: exact values and gradients, with the graph of a few images at a time."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsdd_lib.data.dataset import class_members


def class_groups(labels: Tensor, limit: int) -> list[Tensor]:
    """Indices of whole classes, as many together as stay within ``limit`` images.

    A class of more than ``limit`` images is a group of its own.

    >>> [group.tolist() for group in class_groups(torch.tensor([0, 1, 0, 2]), 3)]
    [[0, 2, 1], [3]]
    """
    groups: list[list[Tensor]] = []
    size = 0
    for members in class_members(labels):
        if not groups or size + len(members) > limit:
            groups.append([])
            size = 0
        groups[-1].append(members)
        size += len(members)
    return [torch.cat(group) for group in groups]


def sum_over_groups(
    images: Tensor,
    groups: Sequence[Tensor],
    loss: Callable[..., Tensor],
    labels: Tensor | None = None,
) -> Tensor:
    """``sum over groups of loss(images[group], group)``, one group's graph in memory at a time.

    Args:
        images: [N, ...], with a graph behind them.
        groups: indices; no image in two of them.
        labels: probabilities [N, K] with a graph behind them; given, it is the sum of
            ``loss(images[group], labels[group], group)``.

    Returns:
        A scalar whose gradient in ``images`` and ``labels`` is known when it is returned.
    """
    sources = [images] if labels is None else [images, labels]
    gradients = [torch.zeros_like(source) for source in sources]
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for index in groups:
        leaves = [source.detach()[index].requires_grad_() for source in sources]
        value = loss(*leaves, index)
        for gradient, own in zip(gradients, torch.autograd.grad(value, leaves), strict=True):
            gradient[index] = own
        total += value.detach()
    for source, gradient in zip(sources, gradients, strict=True):
        total = total + ((source - source.detach()) * gradient).sum()  # 0, with the gradient
    return total


def map_micro_batches(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, [N, ...], with ``size`` rows of the tensors in it at a time.

    Differentiable, exactly: more rows than ``size`` are computed without a graph first, and again
    micro-batch by micro-batch when the result is differentiated.
    """
    if len(tensors[0]) <= size:
        return function(*tensors)
    batches = zip(*[tensor.split(size) for tensor in tensors], strict=True)
    once = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in there is random
    return torch.cat([checkpoint(function, *batch, **once) for batch in batches])


class BatchFunction(Protocol):
    """Tensors of a micro-batch to a list of tensors; the same whenever it is called."""

    def __call__(self, *tensors: Tensor, create_graph: bool) -> Sequence[Tensor]: ...


def sum_micro_batches(function: BatchFunction, size: int, *tensors: Tensor) -> list[Tensor]:
    """``sum over micro-batches of function(*batch)``, computed twice instead of kept.

    Args:
        function: called with ``create_graph=False`` for the values, and again with True when they
            are differentiated; it may differentiate inside itself.
        size: of a micro-batch, in rows.
        tensors: [N, ...] each; floating-point ones may need a gradient.

    Differentiable once in ``tensors``, exactly; what is kept for it are the tensors themselves.
    """
    return list(_SumMicroBatches.apply(function, size, *tensors))


class _SumMicroBatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: BatchFunction, size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.function, ctx.size = function, size
        ctx.save_for_backward(*tensors)
        total: list[Tensor] = []
        for batch in zip(*[tensor.detach().split(size) for tensor in tensors], strict=True):
            with torch.enable_grad():  # for a function that differentiates inside itself
                values = [value.detach() for value in function(*batch, create_graph=False)]
            total = [a + b for a, b in zip(total, values, strict=True)] if total else values
        return tuple(total)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *v_total: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        gradients: list[list[Tensor]] = [[] for _ in needed]
        for batch in zip(*[tensor.split(ctx.size) for tensor in ctx.saved_tensors], strict=True):
            leaves = [b.detach().requires_grad_(n) for b, n in zip(batch, needed, strict=True)]
            with torch.enable_grad():
                values = ctx.function(*leaves, create_graph=True)
            pairs = [(x, v) for x, v in zip(values, v_total, strict=True) if x.requires_grad]
            wanted = [leaf for leaf in leaves if leaf.requires_grad]
            outputs, v_outputs = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outputs, wanted, v_outputs, materialize_grads=True))
            for kept, leaf in zip(gradients, leaves, strict=True):
                if leaf.requires_grad:
                    kept.append(next(found))
        return None, None, *[torch.cat(kept) if kept else None for kept in gradients]
