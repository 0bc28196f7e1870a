"""Distribution matching: ``sum_c || mean embed(real_c) - mean embed(syn_c) ||^2``.

arXiv 2110.04181, eq. 5, and its published code: the embedding is what a freshly initialized
network computes before its linear layer; squared distances are summed over features and classes.
:func:`kernel_loss` compares whole distributions in place of their means.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean embedding of every class.

    A product with a matrix, not an atomic scatter: equal inputs give equal bits on every device.

    Args:
        embeddings: [N, features].
        labels: int64 [N], in [0, num_classes), every class at least once, in any order; or
            probabilities [N, num_classes], by which the means are weighted: ``sum_n p_nc e_n /
            sum_n p_nc``, differentiable in them too.

    Returns:
        [num_classes, features].

    >>> import torch
    >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[2.], [5.]])
    """
    hard = not labels.is_floating_point()
    members = F.one_hot(labels, num_classes).to(embeddings) if hard else labels  # [N, K]
    counts = members.sum(0)  # [K]
    if not counts.all():
        missing = int((counts == 0).nonzero()[0])
        raise ValueError(
            f"class {missing} of {num_classes} has no images, so it has no mean embedding; "
            "give every class at least one"
        )
    return (members.T @ embeddings) / counts[:, None]  # [K, features]


def dm_loss(real_means: Tensor, syn_embeddings: Tensor, syn_labels: Tensor) -> Tensor:
    """Squared distance between real and synthetic mean embeddings, summed over classes.

    Args:
        real_means: [K, features], from :func:`class_means`, usually without gradient.
        syn_embeddings: [N, features].
        syn_labels: int64 [N], every class at least once, or probabilities [N, K].

    Returns:
        A scalar, differentiable in both embeddings, and in probabilities.
    """
    syn_means = class_means(syn_embeddings, syn_labels, len(real_means))
    return (real_means - syn_means).square().sum()


BANDWIDTHS = (0.25, 1.0)  # squared, over the mean squared distance of a class's real images


def kernel_loss(
    real: Tensor, real_labels: Tensor, synthetic: Tensor, synthetic_labels: Tensor
) -> Tensor:
    """Squared maximum mean discrepancy of every class, summed, with two Gaussian kernels.

    ``mean k(s, s') - 2 mean k(s, r) + mean k(r, r')``, ``k(x, y) = exp(-|x - y|^2 / 2 b)``: 0 where
    the two have one distribution, not only one mean.

    Args:
        real: embeddings [N, features], without gradient.
        real_labels: int64 [N].
        synthetic: embeddings [M, features].
        synthetic_labels: int64 [M]; each of its classes has real images.

    Returns:
        A scalar, differentiable in ``synthetic``.

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, eq. 5.
    """
    total = synthetic.new_zeros(())
    for label in synthetic_labels.unique().tolist():
        s, r = synthetic[synthetic_labels == label], real[real_labels == label]
        among_real = _squared_distances(r, r)
        for bandwidth in BANDWIDTHS:
            scale = -0.5 / (bandwidth * among_real.mean().clamp(min=1e-12))
            for distances, weight in (
                (_squared_distances(s, s), 1),
                (_squared_distances(s, r), -2),
                (among_real, 1),
            ):
                total = total + weight * torch.exp(scale * distances).mean()
    return total


def _squared_distances(one: Tensor, other: Tensor) -> Tensor:
    products = one @ other.T
    squares = one.square().sum(1)[:, None] + other.square().sum(1)[None]
    return (squares - 2 * products).clamp(min=0)
