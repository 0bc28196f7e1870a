"""Squeeze, recover and relabel (SRe2L, arXiv 2306.13092): no inner loop, so that ImageNet-1k fits.

A teacher with batch norms is trained on the real data, images are recovered from it, and students
learn what it says of every augmented batch (notebook 13).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.core.graph import set_rate
from gsdd_lib.core.rng import generator
from gsdd_lib.core.schedule import cosine
from gsdd_lib.distillation.state import DistillError
from gsdd_lib.parameterizations.base import Parameterization
from gsdd_lib.training.augment import apply_dsa, sample_dsa

Row = dict[str, float]


@dataclass(frozen=True)
class Recovery:
    """How images are recovered; ``dsa`` augments them."""

    steps: int = 1000
    lr: float = 0.01  # of Adam, falling to 0 by cosine; published for pixels: 0.25
    betas: tuple[float, float] = (0.5, 0.9)
    batch: int = 100  # images that share their statistics
    weight: float = 0.01  # of the statistics over the cross-entropy
    first: float = 10.0  # of the first batch norm's statistics over the others'
    boundary: float = 0.1  # of the parameterization's own penalty
    dsa: str = "crop_flip"


def logits_and_gap(teacher: nn.Module, images: Tensor, first: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits of normalized images, and how far their statistics are from the batch norms' own.

    Eq. 5: the sum of ``|mean - running mean| + |variance - running variance|``, the first one times
    ``first``. Raises ``DistillError`` without a batch norm.
    """
    gaps: list[Tensor] = []

    def measure(norm: nn.BatchNorm2d, inputs: tuple[Tensor], _: Tensor) -> None:
        mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0)
        gaps.append((mean - norm.running_mean).norm() + (variance - norm.running_var).norm())

    norms = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_hook(measure) for norm in norms]
    logits = teacher.eval()(images)
    for hook in hooks:
        hook.remove()
    if not gaps:
        raise DistillError("SRe2L needs a teacher with batch norms; choose ResNet18BN or such")
    return logits, first * gaps[0] + sum(gaps[1:])


def recover(
    images: Parameterization, teacher: nn.Module, config: Recovery, *, seed: int
) -> Iterator[Row]:
    """Move ``images`` in place, one batch after another; a row per step: batch, step, the losses.

    DistillError: the teacher has no batch norm, or the loss is non-finite.
    """
    order = torch.randperm(len(images), generator=generator(seed, "sre2l", "order"))
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    for number, index in enumerate(order.to(images.labels.device).split(config.batch)):
        part, rng = _subset(images, index), generator(seed, "sre2l", number)
        optimizer = torch.optim.Adam(part.parameters(), lr=config.lr, betas=config.betas)
        for step in range(config.steps):
            dsa = sample_dsa(config.dsa, len(part), part.resolution, generator=rng)
            logits, gap = logits_and_gap(frozen, apply_dsa(part.render(), dsa), config.first)
            entropy = F.cross_entropy(logits, part.labels)
            loss = entropy + config.weight * gap + config.boundary * part.penalty()
            if not loss.isfinite():
                raise DistillError(f"The loss is non-finite at step {step + 1}; lower the lr")
            set_rate(optimizer, config.lr * cosine(step, config.steps))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            part.constrain_()
            losses = {"cross_entropy": entropy.item(), "gap": gap.item()}
            yield {"batch": number, "step": step, **losses}
        with torch.no_grad():
            for whole, own in zip(images.parameters(), part.parameters(), strict=True):
                whole[index] = own


def _subset(images: Parameterization, index: Tensor) -> Parameterization:
    # With parameters of their own, so that Adam moves no others
    part = copy.copy(images)
    own = {name: nn.Parameter(value.detach()[index]) for name, value in images.named_parameters()}
    part._parameters, part._buffers = own, images._buffers | {"labels": images.labels[index]}
    return part
