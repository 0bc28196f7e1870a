"""Distribution matching: ``sum_c || mean embed(real_c) - mean embed(syn_c) ||^2``.

arXiv 2110.04181, eq. 5: the embedding is what an untrained network has before its linear layer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BANDWIDTHS = (0.25, 1.0)  # squared, over the mean squared distance of a class's real images


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean embedding of every class, [num_classes, features], of embeddings [N, features].

    Args:
        labels: int64 [N], which may stay on the CPU, where nobody waits for them; or probabilities
            [N, num_classes] by which the means are weighted.

    Raises:
        ValueError: a class has no images.
    """
    hard = not labels.is_floating_point()
    members = F.one_hot(labels, num_classes).to(embeddings.dtype) if hard else labels  # [N, K]
    counts = members.sum(0)  # [K]
    if not counts.all():
        fault = f"class {int((counts == 0).nonzero()[0])} of {num_classes} has no images"
        raise ValueError(f"{fault}, so it has no mean embedding; give every class at least one")
    members, counts = (v.to(embeddings.device, non_blocking=True) for v in (members, counts))
    return (members.T @ embeddings) / counts[:, None]  # equal inputs give equal bits anywhere


def dm_loss(real_means: Tensor, syn_embeddings: Tensor, syn_labels: Tensor) -> Tensor:
    """Squared distance of the :func:`class_means` [K, features], summed over classes."""
    syn_means = class_means(syn_embeddings, syn_labels, len(real_means))
    return (real_means - syn_means).square().sum()


def kernel_loss(
    real: Tensor, real_labels: Tensor, synthetic: Tensor, synthetic_labels: Tensor
) -> Tensor:
    """Squared maximum mean discrepancy of every class, summed, with two Gaussian kernels.

    ``mean k(s, s') - 2 mean k(s, r) + mean k(r, r')``, ``k(x, y) = exp(-|x - y|^2 / 2 b)``: 0 where
    the two have one distribution (Gretton et al., A Kernel Two-Sample Test, JMLR 2012, eq. 5).

    Args:
        real, synthetic: embeddings [N, features] and [M, features], the real ones without gradient.
        real_labels, synthetic_labels: int64, best on the CPU; each synthetic class has real images.
    """

    labels, classes = (synthetic_labels, real_labels), synthetic_labels.unique()
    members = [[(own == label).nonzero().flatten() for label in classes] for own in labels]
    alike = all(len(set(map(len, own))) == 1 for own in members)
    if synthetic.is_cuda and alike:  # all classes in each launch
        batches = [tuple(map(torch.stack, members))]
    else:
        batches = list(zip(*members, strict=True))
    total = synthetic.new_zeros(())
    for each in batches:
        indices = (index.to(synthetic.device, non_blocking=True) for index in each)
        s, r = (own[index] for own, index in zip((synthetic, real), indices, strict=True))
        total = discrepancy(s, r, total)
    return total


def discrepancy(synthetic: Tensor, real: Tensor, total: Tensor) -> Tensor:
    """``total`` and the kernel loss of a class, [n, features], or of several, [K, n, features]."""

    def squared_distances(one: Tensor, other: Tensor) -> Tensor:
        squares = one.square().sum(-1)[..., :, None] + other.square().sum(-1)[..., None, :]
        return (squares - 2 * one @ other.mT).clamp(min=0)

    s, r = synthetic, real
    pairs = [(squared_distances(*each), w) for *each, w in ((s, s, 1), (s, r, -2), (r, r, 1))]
    level = pairs[-1][0].mean((-2, -1), keepdim=True).clamp(min=1e-12)
    for bandwidth in BANDWIDTHS:
        scale = -0.5 / (bandwidth * level)
        for distances, weight in pairs:
            total = total + (weight * torch.exp(scale * distances).mean((-2, -1))).sum()
    return total
