"""Losses that are sums over parts of a batch, with one part's graph in memory at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gsdd_lib.data.sampling import class_members


def sum_over_parts(
    images: Tensor, parts: Sequence[Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``sum over parts of loss(images[part], part)``, one part's graph in memory at a time.

    Args:
        images: [N, ...], with a graph behind them.
        parts: indices; no image in two of them.

    Returns a scalar whose gradient in ``images`` is already known when it is returned.
    """
    gradient = torch.zeros_like(images)
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for index in parts:
        part = images.detach()[index].requires_grad_()
        value = loss(part, index)
        (gradient[index],) = torch.autograd.grad(value, part)
        total += value.detach()
    return total + ((images - images.detach()) * gradient).sum()  # adds 0; carries the gradient


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
