"""Trajectory matching: ``|| student - target ||^2 / || start - target ||^2``.

arXiv 2203.11932, eq. 3: a student that starts where an expert was after some epoch is to end, by
SGD on synthetic images, where it was some epochs later. Parameters are one flat vector [P].
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gsdd_lib.core import ranks
from gsdd_lib.distillation.microbatch import recomputed
from gsdd_lib.networks import unflatten
from gsdd_lib.training.experts import ExpertError


def synthetic_batches(
    count: int, size: int, steps: int, *, generator: torch.Generator
) -> list[Tensor]:
    """Indices out of ``count`` images for each of ``steps`` steps, ``size`` at a time (0: all).

    Without replacement until the set is used up (its last batch may be smaller).
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
    augment: Callable[..., Tensor] = lambda images, which, *, step: images,
    keep_steps: int = 0,
) -> Tensor:
    """Where SGD on synthetic images leads from ``start``; ranks share the batch of every step.

    Args:
        network: its structure alone is used.
        images: normalized [N, C, H, W], rendered once for all steps.
        labels: int64 [N], or probabilities [N, K].
        batches: indices of the images of every step (:func:`synthetic_batches`).
        augment: ``augment(images, which, step=t)`` of those at ``which`` places in t's batch.
        keep_steps: so many last steps keep their activations for the gradient, which is exact; the
            others are computed again, one at a time.

    Returns:
        Parameters [P], differentiable once in images, labels and lr.
    """

    def step(number: int, *inputs: Tensor, create_graph: bool) -> list[Tensor]:
        params, images, labels, lr = inputs
        params = params if params.requires_grad else params.detach().requires_grad_()
        (own,), batch = ranks.fan_out(params), batches[number]
        which = ranks.share(torch.arange(len(batch), device=batch.device))
        if len(which):
            chosen = augment(images[batch[which]], which, step=number)
            logits = functional_call(network, unflatten(own, network), (chosen,))
            loss = F.cross_entropy(logits, labels[batch[which]]) * (len(which) / len(batch))
            (gradient,) = torch.autograd.grad(loss, own, create_graph=create_graph)
        else:  # a rank without images must join in the sums, forward and back
            gradient = 0 * own + 0 * images.sum()
        return [params - lr * ranks.sum_up(gradient)]

    images, labels = ranks.fan_out(images, labels)
    params = start
    for number in range(len(batches)):
        own = partial(step, number)
        if number < len(batches) - keep_steps:
            (params,) = recomputed(own, params, images, labels, lr)
        else:
            (params,) = own(params, images, labels, lr, create_graph=True)
    return params


def tm_loss(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """1 for a student that did not move; ExpertError where the expert did not."""
    distance = (start - target).square().sum()
    if not distance > 0:  # also where it is NaN
        fault = "the expert's parameters are equal or non-finite at the start and at the end of the"
        remedy = "train the experts with a larger expert_lr or match more epochs"
        raise ExpertError(f"{fault} matched epochs; {remedy}")
    return (student - target).square().sum() / distance
