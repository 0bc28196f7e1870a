"""Train one network on a distilled set, and count how often a network is right.

The default is the field's (arXiv 2006.05929, 2110.04181): SGD with momentum 0.9 and weight decay
5e-4, a tenth of the learning rate in the second half, DSA with a draw per image.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.config import EvalConfig
from gsdd_lib.core.errors import GsddError
from gsdd_lib.training.augment import apply_dsa, sample_dsa

MOMENTUM = 0.9
TEST_BATCH = 512  # images per forward pass; the accuracy does not depend on it

EpochHook = Callable[[int, float], None]  # called with (epoch, mean loss) after every epoch


class EvaluationError(GsddError, RuntimeError):
    """A network cannot be trained on these images; the message says why and what to change."""


def train_network(
    images: Tensor,
    labels: Tensor,
    network: nn.Module,
    config: EvalConfig,
    *,
    generator: torch.Generator,
    progress: EpochHook | None = None,
) -> nn.Module:
    """Train ``network`` in place on normalized images [N, C, H, W]; returned in eval mode.

    Args:
        labels: int64 [N], or probabilities [N, num_classes].
        generator: the source of the order of the images and of their augmentation.
        progress: called after every epoch.

    Raises :class:`EvaluationError` when the loss is no longer a number.
    """
    network.train()
    optimizer = _optimizer(network, config)
    for epoch in range(config.epochs):
        optimizer.param_groups[0]["lr"] = learning_rate(config, epoch)
        loss = train_epoch(
            network,
            optimizer,
            images,
            labels,
            batch=config.eval_batch,
            dsa=config.eval_dsa,
            generator=generator,
        )
        if not math.isfinite(loss):
            raise EvaluationError(
                f"the training loss is {loss} in epoch {epoch + 1} of {config.epochs}; "
                f"lower the learning rate (eval_lr={config.eval_lr}) or look for images that are "
                "not finite"
            )
        if progress:
            progress(epoch, loss)
    return network.eval()


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    batch: int,
    dsa: str,
    generator: torch.Generator,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """One pass over the images in a new order, each batch augmented; the mean loss over images.

    Args:
        images: [N, C, H, W], on the network's device.
        labels: int64 [N], or probabilities [N, num_classes].
        batch: images per step of the optimizer.
        dsa: augmentations (:func:`~gsdd_lib.training.augment.sample_dsa`), parameters per image.
        generator: the source of the order and of the augmentation.
        normalize: applied to a batch before its augmentation, e.g. ``data.normalize`` for uint8
            images; left out, the images are normalized already.
    """
    total = torch.zeros((), dtype=torch.float64, device=images.device)
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    size = tuple(images.shape[2:])
    for index in order.to(images.device).split(batch):
        params = sample_dsa(dsa, len(index), size, generator=generator, siamese=False)
        chosen = normalize(images[index]) if normalize else images[index]
        loss = F.cross_entropy(network(apply_dsa(chosen, params)), labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach().double() * len(index)
    return total.item() / len(images)


def learning_rate(config: EvalConfig, epoch: int) -> float:
    """The rate of one epoch, counted from 0.

    >>> [learning_rate(EvalConfig(epochs=4), epoch) for epoch in range(4)]
    [0.01, 0.01, 0.01, 0.001]
    """
    if config.eval_schedule == "cosine":
        return config.eval_lr * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
    first_half = epoch <= config.epochs // 2  # the published code: 501 of 1000 epochs at full rate
    return config.eval_lr if first_half else config.eval_lr / 10


@torch.no_grad()
def accuracy(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Percent of images [N, C, H, W] whose largest logit is that of their label, int64 [N].

    normalize: applied to a batch at a time, e.g. ``data.normalize`` for uint8 images; left out,
        the images are normalized already
    """
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
