"""Trajectory matching: ``|| student - target ||^2 / || start - target ||^2``.

arXiv 2203.11932, eq. 3: a student starts where an expert was after some epoch of training on real
data, takes steps of SGD on the synthetic images, and is to end where the expert was some epochs
later. Parameters are one flat vector [P], in the order of ``network.named_parameters()``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gsdd_lib.distillation.microbatch import recomputed
from gsdd_lib.networks import unflatten
from gsdd_lib.training.experts import ExpertError


def synthetic_batches(
    count: int, size: int, steps: int, *, generator: torch.Generator
) -> list[Tensor]:
    """Indices for each of ``steps`` inner steps out of ``count`` images, ``size`` at a time.

    Without replacement until the set is used up (its last batch may be smaller), then in a new
    order. ``size`` 0: the whole set at every step.
    """
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches += torch.randperm(count, generator=generator).split(size or count)
    return batches[:steps]


def student_path(
    network: nn.Module,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    *,
    batches: Sequence[Tensor],
    augment: Callable[..., Tensor] | None = None,
    keep_steps: int = 0,
) -> Tensor:
    """Where SGD on synthetic images leads from ``start``.

    Args:
        network: its structure alone is used.
        start: [P], the expert's.
        images: normalized [N, C, H, W], rendered once for all inner steps.
        labels: int64 [N], or probabilities [N, K].
        lr: scalar, the learning rate of every inner step.
        batches: for each inner step the indices of its images (:func:`synthetic_batches`).
        augment: changes the images of a step, ``augment(images, step=t)``; the same whenever it is
            called for that step.
        keep_steps: how many of the last inner steps keep their activations for the gradient. The
            others keep the parameters they start from and are computed again, one at a time, so
            the memory is that of ``max(1, keep_steps)`` steps. The gradient is exact either way.

    Returns:
        Parameters [P], differentiable once in images, labels and lr.
    """
    params = start
    for number, batch in enumerate(batches):
        change = partial(augment, step=number) if augment else None
        step = partial(_inner_step, network=network, batch=batch, augment=change)
        if number < len(batches) - keep_steps:
            (params,) = recomputed(step, params, images, labels, lr)
        else:
            (params,) = step(params, images, labels, lr, create_graph=True)
    return params


def _inner_step(
    params: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    *,
    network: nn.Module,
    batch: Tensor,
    augment: Callable[[Tensor], Tensor] | None,
    create_graph: bool,
) -> list[Tensor]:
    """Parameters [P], the one of the list, after a step of SGD on the images at ``batch``."""
    params = params if params.requires_grad else params.detach().requires_grad_()
    chosen = augment(images[batch]) if augment else images[batch]
    logits = functional_call(network, unflatten(params, network), (chosen,))
    loss = F.cross_entropy(logits, labels[batch])
    (gradient,) = torch.autograd.grad(loss, params, create_graph=create_graph)
    return [params - lr * gradient]


def tm_loss(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """``||student - target||^2 / ||start - target||^2``: 1 for a student that did not move.

    Args:
        student, start, target: parameters [P].

    Raises:
        ExpertError: the expert did not move.

    >>> zero, one = torch.zeros(3), torch.ones(3)
    >>> tm_loss(zero, zero, one), tm_loss(one, zero, one)
    (tensor(1.), tensor(0.))
    """
    distance = (start - target).square().sum()
    if not distance > 0:  # also where it is NaN
        raise ExpertError(
            "the expert's parameters are equal or non-finite at the start and at the end of the "
            "matched epochs; train the experts with a larger expert_lr or match more epochs"
        )
    return (student - target).square().sum() / distance
