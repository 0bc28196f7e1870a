"""Distribution matching: ``sum_c || mean embed(real_c) - mean embed(syn_c) ||^2``.

arXiv 2110.04181, eq. 5: the embedding is what an untrained network has before its linear layer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gsdd_lib.core.graph import Recorded
from gsdd_lib.distillation.microbatch import map_micro_batches
from gsdd_lib.networks import Network

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
    total = synthetic.new_zeros(())
    for each in zip(*members, strict=True):
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


class Matching:
    """The loss of whole classes of equal size, by one step's network, which a GPU records.

    Its launches are issued at once (:class:`~gsdd_lib.core.graph.Recorded`), so all that they read
    and write stays where it is: the first step's network, into which the later ones are copied, a
    loss and a gradient for each number of images.

    Args:
        network: untrained, in evaluation mode, without gradients of its own.
        kind: ``dm_match`` of ``DistillConfig``.
    """

    def __init__(self, network: Network, kind: str) -> None:
        self.network, self.kind = network, kind
        self.results: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self.recorded = Recorded(self._run, next(network.parameters()).device)

    @torch.no_grad()
    def use(self, network: Network) -> None:
        """Match by ``network``, another one of the same kind, from now on."""
        torch._foreach_copy_(list(self.network.parameters()), list(network.parameters()))

    def __call__(self, real: Tensor, synthetic: Tensor, **settings: int) -> Tensor:
        """The loss, differentiable in ``synthetic``.

        Args:
            real, synthetic: augmented images, class after class, each class as many as another.
            settings: the number of ``classes``, and ``micro_batch``.
        """
        if synthetic.shape not in self.results:
            self.results[synthetic.shape] = synthetic.new_zeros(()), torch.zeros_like(synthetic)
        fixed = synthetic.detach()
        self.recorded(real, fixed, **settings)
        loss, gradient = (value.clone() for value in self.results[synthetic.shape])
        return loss + ((synthetic - fixed) * gradient).sum()  # of the loss's value and gradient

    def _run(self, real: Tensor, synthetic: Tensor, classes: int, micro_batch: int) -> None:
        def embed(images: Tensor) -> Tensor:
            embeddings = map_micro_batches(self.network.embed, micro_batch, images)
            return embeddings.unflatten(0, (classes, -1))

        with torch.no_grad():
            r = embed(real)
        images = synthetic.detach().requires_grad_()
        s = embed(images)
        if self.kind == "kernel":
            loss = discrepancy(s, r, s.new_zeros(()))
        else:
            loss = (r.mean(1) - s.mean(1)).square().sum()
        for kept, value in zip(
            self.results[synthetic.shape], (loss, *torch.autograd.grad(loss, images)), strict=True
        ):
            kept.copy_(value.detach())
