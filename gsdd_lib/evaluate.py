"""How good is a distilled set? Train fresh networks on it alone and test them on real images.

The default is the field's (arXiv 2006.05929, 2110.04181): from scratch, SGD with momentum 0.9 and
weight decay 5e-4, a tenth of the learning rate in the second half, DSA with a draw per image. The
``validation`` split serves every choice; ``test`` is read only when it is asked for by name.

The networks are trained one after another: all five in one ``torch.func.vmap`` pass, whose
convolutions become grouped ones, are slower on a CPU. ConvNetD3 at width 64 on 28x28, two shared
cores, forward, backward and step of five: loop 0.07 s, vmap 0.19 s for 10 images; 0.85 s and 1.36 s
for 100.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from gsdd_lib.augment import apply_dsa, sample_dsa
from gsdd_lib.config import EvalConfig
from gsdd_lib.data import ImageData
from gsdd_lib.data.sampling import keep_per_class
from gsdd_lib.networks import make_network
from gsdd_lib.progress import Progress
from gsdd_lib.rng import generator as make_generator

MOMENTUM = 0.9
TEST_BATCH = 512  # images per forward pass; the accuracy does not depend on it

EpochHook = Callable[[int, float], None]  # called with (epoch, mean loss) after every epoch


class EvaluationError(RuntimeError):
    """A network cannot be trained on these images; the message says why and what to change."""


def evaluate(
    images: Tensor,
    labels: Tensor,
    data: ImageData,
    config: EvalConfig,
    *,
    seed: int,
    split: str = "validation",
) -> list[dict[str, float | int | str]]:
    """Train ``config.networks`` networks on a distilled set; one row per network.

    Args:
        images: normalized, [N, C, H, W].
        labels: int64 [N], or probabilities [N, num_classes].
        data: real images to test on, and their normalization.
        split: ``validation`` or ``test``; the other one is not read.

    A row holds network_index, seed, split, accuracy (percent), train_loss (mean of the last epoch)
    and seconds. Network i draws from generators of its own: the same rows come out whatever was
    evaluated before, and the first rows are the same for any number of networks.
    """
    _check(images, labels, data, split)
    images, labels = images.detach(), labels.detach()
    with Progress(config.networks * config.epochs, f"evaluate on {split}") as progress:
        return [
            _train_and_test(
                images,
                labels,
                data,
                config,
                seed=seed,
                split=split,
                index=index,
                progress=progress,
            )
            for index in range(config.networks)
        ]


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
        loss = _train_epoch(images, labels, network, optimizer, config=config, generator=generator)
        if not math.isfinite(loss):
            raise EvaluationError(
                f"the training loss is {loss} in epoch {epoch + 1} of {config.epochs}; "
                f"lower the learning rate (eval_lr={config.eval_lr}) or look for images that are "
                "not finite"
            )
        if progress:
            progress(epoch, loss)
    return network.eval()


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


def random_real_images(data: ImageData, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The honest rival: ``count`` random training images per class, normalized, and their labels.

    What ``count`` the same bits buy as uint8 pixels says ``Budget.uint8_images_per_class``.
    """
    draw = make_generator(seed, "evaluate", "random real")
    chosen = data.train.select(keep_per_class(data.train.labels, count, generator=draw))
    return data.normalize(chosen.images), chosen.labels


def summarize(rows: Sequence[dict[str, float | int | str]]) -> dict[str, float]:
    """Mean accuracy in percent, standard deviation, number, and half-width of the 95 % interval.

    ``std`` is that of a sample (n - 1); ``ci95`` is Student's t times std / sqrt(n), an interval
    for the mean over networks. Both are NaN for one network.

    >>> summarize([{"accuracy": 70.0}, {"accuracy": 72.0}])["mean"]
    71.0
    """
    if not rows:
        raise ValueError("no rows to summarize; evaluate at least one network")
    values = torch.tensor([float(row["accuracy"]) for row in rows], dtype=torch.float64)
    n = len(values)
    std = values.std(correction=1).item() if n > 1 else math.nan
    ci95 = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
    return {"mean": values.mean().item(), "std": std, "n": n, "ci95": ci95}


def format_accuracy(summary: dict[str, float]) -> str:
    """Mean ± standard deviation over networks, in percent, as the field prints it.

    >>> format_accuracy({"mean": 78.81, "std": 0.43, "n": 5, "ci95": 0.53})
    '78.8 ± 0.4 (n=5)'
    """
    mean, std, n = summary["mean"], summary["std"], summary["n"]
    spread = "" if math.isnan(std) else f" ± {std:.1f}"
    return f"{mean:.1f}{spread} (n={n:.0f})"


def _train_and_test(
    images: Tensor,
    labels: Tensor,
    data: ImageData,
    config: EvalConfig,
    *,
    seed: int,
    split: str,
    index: int,
    progress: Progress,
) -> dict[str, float | int | str]:
    started, losses = time.perf_counter(), []

    def after_epoch(epoch: int, loss: float) -> None:
        losses.append(loss)
        progress.update(network=index + 1, loss=loss)

    network = make_network(
        config.eval_network,
        channels=images.shape[1],
        num_classes=data.num_classes,
        resolution=tuple(images.shape[2:]),
        width=config.eval_width,
        generator=make_generator(seed, "evaluate", index, "weights"),
        **_choices(config),
    ).to(images.device)
    draws = make_generator(seed, "evaluate", index, "training")
    train_network(images, labels, network, config, generator=draws, progress=after_epoch)
    real = getattr(data, split).to(images.device)
    percent = accuracy(network, real.images, real.labels, normalize=data.normalize)
    return {
        "network_index": index,
        "seed": seed,
        "split": split,
        "accuracy": percent,
        "train_loss": losses[-1],
        "seconds": time.perf_counter() - started,
    }


def _choices(config: EvalConfig) -> dict[str, str]:
    """The settings of a ConvNet that are not the usual ones; the other networks have none."""
    names = ("norm", "pooling", "activation")
    fields = EvalConfig.model_fields
    values = {name: getattr(config, f"eval_{name}") for name in names}
    return {name: v for name, v in values.items() if v != fields[f"eval_{name}"].default}


def _optimizer(network: nn.Module, config: EvalConfig) -> torch.optim.Optimizer:
    settings = {"lr": config.eval_lr, "weight_decay": config.eval_weight_decay}
    if config.eval_optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=MOMENTUM, **settings)
    kind = torch.optim.AdamW if config.eval_optimizer == "adamw" else torch.optim.Adam
    return kind(network.parameters(), **settings)


def _train_epoch(
    images: Tensor,
    labels: Tensor,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: EvalConfig,
    generator: torch.Generator,
) -> float:
    """One pass in a new order; the mean loss over images."""
    total = torch.zeros((), device=images.device)
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    for index in order.to(images.device).split(config.eval_batch):
        params = sample_dsa(
            config.eval_dsa,
            len(index),
            tuple(images.shape[2:]),
            generator=generator,
            siamese=False,
        )
        loss = F.cross_entropy(network(apply_dsa(images[index], params)), labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)
    return total.item() / len(images)


def _check(images: Tensor, labels: Tensor, data: ImageData, split: str) -> None:
    if split not in ("validation", "test"):
        raise ValueError(f"unknown split '{split}'; choose 'validation' or 'test'")
    expected = (data.channels, *data.resolution)
    if images.dim() != 4 or tuple(images.shape[1:]) != expected or not len(images):
        raise ValueError(
            f"images to evaluate must be [N, {', '.join(map(str, expected))}] to be tested on "
            f"'{data.name}', got {list(images.shape)}; render them at its resolution"
        )
    hard = labels.dim() == 1 and not labels.is_floating_point()
    soft = labels.shape[1:] == (data.num_classes,) and labels.is_floating_point()
    if len(labels) != len(images) or not (hard or soft):
        raise ValueError(
            f"labels must be integers [{len(images)}] or probabilities "
            f"[{len(images)}, {data.num_classes}], got {labels.dtype} {list(labels.shape)}"
        )
    if hard and not 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes:
        raise ValueError(
            f"labels must lie in 0 to {data.num_classes - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}; number the classes as '{data.name}' does"
        )
