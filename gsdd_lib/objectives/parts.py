"""Losses that are sums over parts of a batch, with one part's graph in memory at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gsdd_lib.data.sampling import class_members


def sum_over_parts(
    images: Tensor,
    parts: Sequence[Tensor],
    loss: Callable[..., Tensor],
    labels: Tensor | None = None,
) -> Tensor:
    """``sum over parts of loss(images[part], part)``, one part's graph in memory at a time.

    Args:
        images: [N, ...], with a graph behind them.
        parts: indices; no image in two of them.
        labels: probabilities [N, K] with a graph behind them; given, it is the sum of
            ``loss(images[part], labels[part], part)``.

    Returns a scalar whose gradient in ``images`` and ``labels`` is known when it is returned.
    """
    sources = [images] if labels is None else [images, labels]
    gradients = [torch.zeros_like(source) for source in sources]
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for index in parts:
        leaves = [source.detach()[index].requires_grad_() for source in sources]
        value = loss(*leaves, index)
        for gradient, part in zip(gradients, torch.autograd.grad(value, leaves), strict=True):
            gradient[index] = part
        total += value.detach()
    for source, gradient in zip(sources, gradients, strict=True):
        total = total + ((source - source.detach()) * gradient).sum()  # 0, with the gradient
    return total


def loss_of_embeddings(
    images: Tensor,
    parts: Sequence[Tensor],
    embed: Callable[[Tensor, Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
) -> Tensor:
    """``loss(embeddings of all images)``, with one part's activations in memory at a time.

    For a loss that is no sum over parts, as that of classes whose means all images have a share in.
    Each part is embedded twice: for the value, and for the gradient.

    Args:
        images: [N, ...], with a graph behind them.
        parts: indices that cut [0, N) in order.
        embed: ``embed(images[part], part)`` gives [n, features].
        loss: of [N, features], a scalar; what else it depends on gets its gradient as usual.
    """
    with torch.no_grad():
        embeddings = torch.cat([embed(images[index], index) for index in parts])
    (gradient,) = torch.autograd.grad(loss(embeddings.requires_grad_()), embeddings)

    def share(part: Tensor, index: Tensor) -> Tensor:
        return (embed(part, index) * gradient[index]).sum()

    shares = sum_over_parts(images, parts, share)
    return loss(embeddings.detach()) + (shares - shares.detach())  # adds 0 and the images' part


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
