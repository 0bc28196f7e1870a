"""Distribution matching: ``sum_c || mean embed(real_c) - mean embed(syn_c) ||^2``.

arXiv 2110.04181, eq. 5, and its published code: the embedding is what a freshly initialized
network computes before its linear layer; squared distances are summed over features and classes.
"""

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
