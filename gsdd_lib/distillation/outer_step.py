"""One step of the outer loop: what moves, by which optimizer and at which rate."""

import math

import torch
from torch import Tensor

from gsdd_lib.config import DistillConfig
from gsdd_lib.core.schedule import cosine
from gsdd_lib.data import ImageData
from gsdd_lib.distillation.carried import Carried
from gsdd_lib.distillation.losses import STEP_LOSSES
from gsdd_lib.distillation.state import Distillation
from gsdd_lib.parameterizations.base import Parameterization

SYN_LR_MOMENTUM = 0.5  # of the SGD that learns the students' learning rate, as published
# Largest gradient of its logarithm that counts; the published code has no limit and goes NaN.
SYN_LR_CLIP = 1.0


def optimizers_of(
    gaussians: Parameterization, carried: Carried, config: DistillConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """Of the Gaussians, of the students' learning rate, and of labels that are learned."""
    adam = torch.optim.Adam(gaussians.parameters(), lr=config.lr)
    sgd = torch.optim.SGD([carried.log_syn_lr], lr=config.lr_lr, momentum=SYN_LR_MOMENTUM)
    if carried.soft is None:
        return adam, sgd
    carried.soft.requires_grad_(config.label_lr > 0)
    if not config.label_lr:
        return adam, sgd
    return adam, sgd, torch.optim.Adam(carried.soft.parameters(), lr=config.label_lr)


def outer_rate(config: DistillConfig, step: int) -> float:
    """Adam's learning rate at one of ``config.steps``, counted from 0.

    >>> [outer_rate(DistillConfig(lr=1.0, steps=2, lr_schedule="cosine"), t) for t in (0, 1)]
    [1.0, 0.5]
    """
    if config.lr_schedule == "constant":
        return config.lr
    return config.lr * cosine(step, config.steps)


def take_step(state: Distillation, data: ImageData, config: DistillConfig, *, seed: int) -> Tensor:
    """One step; the loss, or NaN where it, its gradient or the new learning rate is no number."""
    gaussians, carried = state.gaussians, state.carried
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    step_loss = STEP_LOSSES[config.objective]
    loss = step_loss(gaussians, data, config, carried, seed=seed, step=state.step)
    total = loss + config.boundary * gaussians.penalty()
    total.backward()
    state.optimizers[0].param_groups[0]["lr"] = outer_rate(config, state.step)
    state.step += 1
    moved = [p for optimizer in state.optimizers for p in optimizer.param_groups[0]["params"]]
    if not all(p.grad.isfinite().all() for p in moved if p.grad is not None):
        return torch.full_like(total, math.nan)
    if carried.log_syn_lr.grad is not None:  # one student gone astray must not end the run
        carried.log_syn_lr.grad.clamp_(-SYN_LR_CLIP, SYN_LR_CLIP)
    before = {name: p.detach().clone() for name, p in gaussians.named_parameters()}
    for optimizer in state.optimizers:
        optimizer.step()
    gaussians.scale_step_(before, config.cholesky_lr_ratio)
    gaussians.constrain_()
    return total.detach() if math.isfinite(carried.syn_lr) else torch.full_like(total, math.nan)


def advice(config: DistillConfig) -> str:
    """What to change where a loss is not a number."""
    if config.objective == "tm":
        return f"lower lr={config.lr}, lr_lr={config.lr_lr} or syn_lr_init={config.syn_lr_init}"
    return f"lower the learning rate (lr={config.lr})"
