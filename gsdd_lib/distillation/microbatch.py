"""Sums over micro-batches: exact values and gradients, with the graph of a few images at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsdd_lib.data.dataset import class_members

Recomputable = Callable[..., Sequence[Tensor]]  # see :func:`recomputed`


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


def sum_micro_batches(function: Recomputable, size: int, *tensors: Tensor) -> list[Tensor]:
    """``sum over micro-batches of function(*batch)``, with one graph in memory at a time.

    Args:
        function: see :func:`recomputed`.
        size: of a micro-batch, in rows.
        tensors: [N, ...] each; floating-point ones may need a gradient.
    """
    total: list[Tensor] = []
    for batch in zip(*[tensor.split(size) for tensor in tensors], strict=True):
        values = recomputed(function, *batch)
        total = [a + b for a, b in zip(total, values, strict=True)] if total else values
    return total


def recomputed(function: Recomputable, *inputs: Tensor) -> list[Tensor]:
    """``function(*inputs)`` that keeps its inputs alone and is computed again for its gradient.

    What ``torch.utils.checkpoint`` does, which runs a function that differentiates inside itself
    three times and builds the graph of the second derivative each time; here it runs twice, the
    first time without that graph. Differentiable once in ``inputs``, exactly.

    Args:
        function: tensors to a sequence of tensors, the same whenever it is called: with
            ``create_graph=False`` for the values, and again with True when they are
            differentiated; it may differentiate inside itself.
    """
    return list(_Recomputed.apply(function, *inputs))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: Recomputable, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        with torch.enable_grad():  # for a function that differentiates inside itself
            values = function(*[value.detach() for value in inputs], create_graph=False)
        return tuple(value.detach() for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *v_values: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        leaves = [
            value.detach().requires_grad_(need)
            for value, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            values = ctx.function(*leaves, create_graph=True)
        pairs = [(x, v) for x, v in zip(values, v_values, strict=True) if x.requires_grad]
        outputs, v_outputs = zip(*pairs, strict=True)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, v_outputs, materialize_grads=True))
        return None, *[next(found) if need else None for need in needed]
