"""Gradient matching: ``sum_layers sum_nodes 1 - cos(real gradient, synthetic gradient)``.

arXiv 2006.05929, eq. 7, and the metric ``ours`` of its published code: biases do not count.
"""

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gsdd_lib.distillation.microbatch import recomputed

# Least product of norms that a cosine divides by; published: added, so that equal is not distance 0
EPSILON = 1e-6


def batch_gradients(
    network: nn.Module,
    params: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor] | None = None,
    *,
    micro_batch: int = sys.maxsize,
) -> list[Tensor]:
    """Gradients of the mean cross-entropy in every parameter, in the order of ``params``.

    Args:
        network: its structure alone is used.
        images: [N, C, H, W], normalized by ``prepare`` if not before; may require a gradient.
        labels: int64 [N], or probabilities [N, K]; may require a gradient.
        micro_batch: images in the network at a time; the gradients are exact.
    """

    def share(few: Tensor, own: Tensor, *, create_graph: bool) -> list[Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        ready = prepare(few) if prepare else few
        loss = F.cross_entropy(functional_call(network, leaves, (ready,)), own)
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph)
        return [grad * (len(few) / len(images)) for grad in grads]

    if len(images) <= micro_batch:
        return share(images, labels, create_graph=images.requires_grad or labels.requires_grad)
    total: list[Tensor] = []
    for batch in zip(images.split(micro_batch), labels.split(micro_batch), strict=True):
        grads = recomputed(share, *batch)
        total = [a + b for a, b in zip(total, grads, strict=True)] if total else grads
    return total


def gradient_distance(real_grads: Sequence[Tensor], syn_grads: Sequence[Tensor]) -> Tensor:
    """1 - cosine per output node, summed over nodes and layers; 1 where a gradient is zero.

    Args:
        real_grads, syn_grads: one tensor per parameter, [out, ...] each; vectors are skipped.
    """
    layers = []
    for real, syn in zip(real_grads, syn_grads, strict=True):
        if real.dim() > 1:
            real, syn = real.flatten(1), syn.flatten(1)  # [out, rest]
            product = real.norm(dim=1) * syn.norm(dim=1)
            layers.append((1 - (real * syn).sum(1) / product.clamp(min=EPSILON)).sum())
    return torch.stack(layers).sum()
