"""Train a network: the one loop over the images of an epoch, and the schedules of evaluation.

The defaults are the field's (arXiv 2006.05929, 2110.04181).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gsdd_lib.config import EvalConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.schedule import cosine
from gsdd_lib.training.augment import apply_dsa, sample_dsa

MOMENTUM = 0.9
TEST_BATCH = 512  # images per forward pass; the accuracy does not depend on it
Normalize = Callable[[Tensor], Tensor]


class EvaluationError(GsddError, ValueError):
    """A network cannot be trained on these images; the message says why and what to change."""


def train_network(
    images: Tensor, labels: Tensor, network: nn.Module, config: EvalConfig, **more: Any
) -> float:
    """Train ``network`` in place; with ``eval_ema`` it ends with its weights' moving average.

    Args:
        more: as of :func:`train_epoch`; and ``progress``, updated after every epoch.

    Returns:
        The mean loss of the last epoch; EvaluationError where it is not finite.
    """
    progress: Progress | None = more.pop("progress", None)
    network.train()
    optimizer, averaged = _optimizer(network, config), None
    if config.eval_ema:
        average = get_ema_multi_avg_fn(config.eval_ema)
        averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    more |= {"batch": config.eval_batch, "dsa": config.eval_dsa, "averaged": averaged}
    for epoch in range(passes(config)):
        if config.eval_schedule == "published" and epoch == config.epochs // 2 + 2:
            optimizer = _optimizer(network, config)  # its momentum is lost where the rate falls
        optimizer.param_groups[0]["lr"] = learning_rate(config, epoch)
        loss = train_epoch(network, optimizer, images, labels, **more)
        if not math.isfinite(loss):
            lower = f"lower the learning rate (eval_lr={config.eval_lr})"
            fault = f"the training loss is {loss} in epoch {epoch + 1} of {passes(config)}; {lower}"
            raise EvaluationError(f"{fault} or look for non-finite images")
        if progress:
            progress.update(loss=loss)
    if averaged is not None:
        network.load_state_dict(averaged.module.state_dict())
    network.eval()
    return loss


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    batch: int,
    dsa: str,
    generator: torch.Generator,
    normalize: Normalize | None = None,
    averaged: AveragedModel | None = None,
) -> float:
    """One pass over the images in a new order, each batch augmented; returns the mean loss.

    Args:
        images: [N, C, H, W], normalized unless ``normalize`` is given, for batches of them.
        labels: int64 [N], or probabilities [N, num_classes].
        dsa: strategy of :func:`~gsdd_lib.training.augment.sample_dsa`.
        generator: of the order of the images and of their augmentation.
        averaged: updated after every step.
    """
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    size = tuple(images.shape[2:])
    for index in order.to(images.device).split(batch):
        params = sample_dsa(dsa, len(index), size, generator=generator)
        chosen = normalize(images[index]) if normalize else images[index]
        loss = F.cross_entropy(network(apply_dsa(chosen, params)), labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if averaged is not None:
            averaged.update_parameters(network)
        total += loss.detach().double() * len(index)
    return total.item() / len(images)


def passes(config: EvalConfig) -> int:
    """Epochs that a network trains: one more than named by the published schedule."""
    return config.epochs + (config.eval_schedule == "published")


def learning_rate(config: EvalConfig, epoch: int) -> float:
    """The learning rate of one epoch, counted from 0.

    ``step`` falls to a tenth after epoch ``epochs // 2``, ``published`` one later, as the codes of
    dataset condensation do: of 1,001 epochs 502 have the full rate and 499 a tenth.
    """
    if config.eval_schedule == "cosine":
        return config.eval_lr * cosine(epoch, config.epochs)
    last = config.epochs // 2 + (config.eval_schedule == "published")
    return config.eval_lr if epoch <= last else config.eval_lr / 10


@torch.no_grad()
def accuracy(
    network: nn.Module, images: Tensor, labels: Tensor, *, normalize: Normalize | None = None
) -> float:
    """Percent of images [N, C, H, W] whose largest logit is that of their label, int64 [N]."""
    correct = 0
    for batch, truth in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
        logits = network(normalize(batch) if normalize else batch)
        correct += int((logits.argmax(1) == truth).sum())
    return 100 * correct / len(labels)


def _optimizer(network: nn.Module, config: EvalConfig) -> torch.optim.Optimizer:
    settings = {"lr": config.eval_lr, "weight_decay": config.eval_weight_decay}
    if config.eval_optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=MOMENTUM, **settings)
    kind = torch.optim.AdamW if config.eval_optimizer == "adamw" else torch.optim.Adam
    return kind(network.parameters(), **settings)
