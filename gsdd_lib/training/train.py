"""Train a network: the one loop over the images of an epoch, and the schedules of evaluation.

The defaults are the field's (arXiv 2006.05929, 2110.04181).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.config import EvalConfig, Precision
from gsdd_lib.core.errors import GsddError
from gsdd_lib.core.graph import Recorded, set_rate
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.schedule import cosine
from gsdd_lib.networks.layers import Dropout
from gsdd_lib.networks.precision import precision
from gsdd_lib.training.augment import DsaParams, apply_dsa, sample_dsa

MOMENTUM = 0.9  # of sgd
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}  # as torch.optim calls them
TEST_BATCH = 512  # images per forward pass; the accuracy does not depend on it
Normalize = Callable[[Tensor], Tensor]


class EvaluationError(GsddError, ValueError):
    """A network cannot be trained on these images; the message says why and what to change."""


class MovingAverage:
    """An exponential moving average of all that a network has: of the first step, what it is."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.current = list(network.state_dict(keep_vars=True).values())
        self.values, self.decay = [], decay

    @torch.no_grad()
    def update(self) -> None:
        pairs = list(zip(self.values, self.current, strict=bool(self.values)))
        self.values = self.values or [value.clone() for value in self.current]
        if real := [pair for pair in pairs if pair[0].is_floating_point()]:
            torch._foreach_lerp_(*map(list, zip(*real, strict=True)), 1 - self.decay)

    @torch.no_grad()
    def install(self) -> None:
        """Give the network the averages."""
        for value, average in zip(self.current, self.values, strict=True):
            value.copy_(average)


class Step:
    """A step of SGD on a batch of ``images``, recorded as a CUDA graph where there is a GPU.

    Args:
        images: [N, C, H, W], normalized unless ``normalize`` is given, for batches of them.
        labels: int64 [N], or probabilities [N, num_classes].
        average: updated after every step.
        precision: of :func:`~gsdd_lib.networks.precision.precision`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        images: Tensor,
        labels: Tensor,
        *,
        normalize: Normalize | None = None,
        average: MovingAverage | None = None,
        precision: Precision = "auto",
        channels_last: bool = False,
    ) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.layout) if channels_last else network
        self.optimizer, self.average = optimizer, average
        self.images, self.labels, self.normalize = images, labels, normalize or (lambda same: same)
        self.precision = precision
        self.total = torch.zeros((), dtype=torch.float64, device=images.device)
        drops = any(isinstance(m, Dropout) and m.probability for m in network.modules())
        # Dropout asks the CPU for its random numbers, so it cannot be recorded
        self.run = self._run if drops else Recorded(self._run, images.device)

    def __call__(self, index: Tensor, packed: Tensor, params: DsaParams) -> None:
        """On the images at ``index`` with the numbers ``packed`` of augmentation ``params``."""
        self.run(index, packed, kind=int(params.kind[0]))

    def _run(self, index: Tensor, packed: Tensor, kind: int) -> None:
        kinds = torch.tensor(kind).expand(len(packed))
        params = DsaParams(tuple(self.images.shape[2:]), kinds, packed)
        batch = apply_dsa(self.normalize(self.images[index]), params)
        with precision(self.precision, batch.device):
            logits = self.network(batch.contiguous(memory_format=self.layout))
            loss = F.cross_entropy(logits.float(), self.labels[index])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.total += loss.detach().double() * len(index)


def train_network(
    images: Tensor, labels: Tensor, network: nn.Module, config: EvalConfig, **more: Any
) -> float:
    """Train ``network`` in place; with ``eval_ema`` it ends with its weights' moving average.

    Args:
        more: ``generator``, of the order of the images and of their augmentation; ``normalize``,
            as of :class:`Step`; ``progress``, updated after every epoch.

    Returns:
        The mean loss of the last epoch; EvaluationError where it is not finite.
    """
    progress: Progress | None = more.pop("progress", None)
    for loss in training(images, labels, network, config, **more):
        if progress:
            progress.update(loss=loss)
    return loss


def training(
    images: Tensor,
    labels: Tensor,
    network: nn.Module,
    config: EvalConfig,
    *,
    generator: torch.Generator,
    normalize: Normalize | None = None,
) -> Iterator[float]:
    """:func:`train_network`, which yields the losses: each when the next epoch is under way, so
    that a GPU has work while Python waits for the number."""
    network.train()
    average = MovingAverage(network, config.eval_ema) if config.eval_ema else None
    how = {"precision": config.eval_precision, "channels_last": config.eval_channels_last}
    how |= {"normalize": normalize, "average": average}
    name, own = config.eval_optimizer, {"weight_decay": config.eval_weight_decay}
    own |= {"momentum": MOMENTUM} if name == "sgd" else {}
    published, losses = config.eval_schedule == "published", []
    for epoch in range(passes(config)):
        # as published, the momentum is lost where the rate falls
        if epoch == 0 or (published and epoch == config.epochs // 2 + 2):
            optimizer = optimizer_for(network, name, config.eval_lr, **own)
            step = Step(network, optimizer, images, labels, **how)
        set_rate(step.optimizer, learning_rate(config, epoch))
        losses.append(train_epoch(step, config.eval_batch, config.eval_dsa, generator))
        if epoch:
            yield _checked(losses, epoch, config)
    if average is not None:
        average.install()
    network.eval()
    yield _checked(losses, passes(config), config)


def train_epoch(step: Step, batch: int, dsa: str, generator: torch.Generator) -> Tensor:
    """One pass over the images in a new order, each batch augmented.

    Args:
        dsa: strategy of :func:`~gsdd_lib.training.augment.sample_dsa`.
        generator: of the order of the images and of their augmentation.

    Returns:
        The mean loss, a float64 scalar on the device, for which nothing has waited yet.
    """
    count, *size = len(step.images), *step.images.shape[2:]
    order = torch.randperm(count, generator=generator)
    params = [sample_dsa(dsa, len(own), size, generator=generator) for own in order.split(batch)]
    packed = torch.cat([own.packed for own in params])
    order, packed = (v.to(step.images.device, non_blocking=True) for v in (order, packed))
    step.total.zero_()
    for each in zip(order.split(batch), packed.split(batch), params, strict=True):
        step(*each)
    return step.total / count


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
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    for batch, truth in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
        logits = network(normalize(batch) if normalize else batch)
        correct += (logits.argmax(1) == truth).sum()
    return 100 * int(correct) / len(labels)


def optimizer_for(
    network: nn.Module, name: str, rate: float, **settings: Any
) -> torch.optim.Optimizer:
    """One of :data:`OPTIMIZERS`, such as a CUDA graph can hold where the network is on a GPU."""
    device = next(network.parameters()).device
    if device.type == "cuda":
        rate, settings["fused"] = torch.tensor(rate, device=device), True
        settings |= {"capturable": True} if name != "sgd" else {}
    return getattr(torch.optim, OPTIMIZERS[name])(network.parameters(), lr=rate, **settings)


def _checked(losses: list[Tensor], epoch: int, config: EvalConfig) -> float:
    loss = losses[epoch - 1].item()
    if not math.isfinite(loss):
        lower = f"lower the learning rate (eval_lr={config.eval_lr})"
        fault = f"the training loss is {loss} in epoch {epoch} of {passes(config)}; {lower}"
        raise EvaluationError(f"{fault} or look for non-finite images")
    return loss
