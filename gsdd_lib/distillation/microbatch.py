"""Sums over micro-batches: exact values and gradients, with the graph of a few images at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gsdd_lib.core import ranks
from gsdd_lib.data.dataset import class_members

CPU = torch.device("cpu")
GROUPS = 16  # of classes in a step; so many ranks can share it


def class_groups(labels: Tensor, limit: int, device: torch.device = CPU) -> list[Tensor]:
    """Indices of whole classes, as many together as stay within ``limit`` images.

    At least :data:`GROUPS` of them where there are so many classes, however many ranks share them:
    so their number changes no bit. On a GPU (``device``) as many as there are ranks: there a small
    group takes as long as a large one.
    """
    groups: list[list[Tensor]] = []
    classes = class_members(labels)
    most = -(-len(classes) // (ranks.world() if device.type == "cuda" else GROUPS))
    for members in classes:
        full = groups and len(groups[-1]) == most
        if not groups or full or sum(map(len, groups[-1])) + len(members) > limit:
            groups.append([])
        groups[-1].append(members)
    return [torch.cat(group) for group in groups]


def sum_over_groups(
    images: Tensor, groups: Sequence[Tensor], loss: Callable[..., Tensor], *labels: Tensor
) -> Tensor:
    """``sum over groups of loss(images[group], group)``, one group's graph in memory at a time.

    Ranks share the groups. With labels [N, K], ``loss(images, labels, group)`` is summed.

    Args:
        images: [N, ...], with a graph behind them.
        groups: indices; no image in two of them.

    Returns:
        A scalar whose gradient in ``images`` and ``labels`` is known when it is returned.
    """
    sources = [images, *labels]
    gradients = [torch.zeros_like(source) for source in sources]
    values = torch.zeros(len(groups), dtype=images.dtype, device=images.device)
    for number in ranks.share(range(len(groups))):
        index = groups[number].to(images.device, non_blocking=True)
        leaves = [source.detach()[index].requires_grad_() for source in sources]
        value = loss(*leaves, groups[number])
        for gradient, own in zip(gradients, torch.autograd.grad(value, leaves), strict=True):
            gradient[index] = own
        values[number] = value.detach()
    ranks.combine(values, *gradients)
    total = sum(values.unbind())
    for source, gradient in zip(sources, gradients, strict=True):
        total = total + ((source - source.detach()) * gradient).sum()  # 0, with the gradient
    return total


def map_micro_batches(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, [N, ...], exactly, with ``size`` rows of them in it at a time.

    More rows are computed again, micro-batch by micro-batch, when the result is differentiated.
    """
    if len(tensors[0]) <= size:
        return function(*tensors)
    batches = zip(*[tensor.split(size) for tensor in tensors], strict=True)
    once = {"use_reentrant": False, "preserve_rng_state": False}  # nothing in there is random
    return torch.cat([checkpoint(function, *batch, **once) for batch in batches])


def recomputed(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> list[Tensor]:
    """``function(*inputs)`` that keeps its inputs alone and is computed again for its gradient.

    Called with ``create_graph=False`` for the values, with True when they are differentiated, once.
    ``torch.utils.checkpoint`` would run a function that differentiates inside itself three times,
    with the graph of the second derivative each time.
    """
    return list(_Recomputed.apply(function, *inputs))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: Callable, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        with torch.enable_grad():  # for a function that differentiates inside itself
            values = function(*[value.detach() for value in inputs], create_graph=False)
        return tuple(value.detach() for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *v_values: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        pairs = zip(ctx.saved_tensors, needed, strict=True)
        leaves = [value.detach().requires_grad_(need) for value, need in pairs]
        with torch.enable_grad():
            values = ctx.function(*leaves, create_graph=True)
        pairs = [(x, v) for x, v in zip(values, v_values, strict=True) if x.requires_grad]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        outputs, v_outputs = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, v_outputs, materialize_grads=True))
        return None, *[next(found) if need else None for need in needed]
