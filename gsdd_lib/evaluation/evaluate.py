"""How good is a distilled set? Train fresh networks on nothing else and test them on real ones.

The ``validation`` split serves every choice; ``test`` is read only when it is asked for by name.
Networks are trained one after another: all in one ``torch.func.vmap`` pass are slower on a CPU (a
step of five ConvNetD3 of width 64 on 100 images of 28x28 took 0.85 s in the loop, 1.36 s so).
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.networks import network_for
from gsdd_lib.training.train import EvaluationError, accuracy, passes, train_network

SUMMARY = ("mean", "std", "n", "ci95")  # what :func:`summarize` gives
Row = dict[str, Any]


def evaluate(
    images: Tensor,
    labels: Tensor,
    data: ImageData,
    config: EvalConfig,
    *,
    seed: int,
    split: str = "validation",
) -> list[Row]:
    """Train ``config.networks`` networks on a set of images and test each.

    Network i has generators of its own: the same rows come out whatever was evaluated before, and
    the first rows are the same for any number of networks. Ranks share the networks.

    Args:
        images: [N, C, H, W], normalized; or real ones as uint8, normalized batch by batch.
        labels: int64 [N], or probabilities [N, num_classes].
        data: real images to test on, and their normalization.
        split: ``validation`` or ``test``; the other one is not read.

    Returns:
        A row per network: network_index, seed, split, accuracy (percent), train_loss (mean of the
        last epoch) and seconds.

    Raises:
        EvaluationError: the images or labels do not fit, or the training diverges.
    """
    if fault := _fault(images, labels, data, split):
        raise EvaluationError(fault)
    images, labels = images.detach().to(data.device), labels.detach().to(data.device)
    normalize = data.normalize if images.dtype == torch.uint8 else None
    kind, choices = (config.eval_network, config.eval_width), _choices(config)

    def row(index: int) -> Row:
        started, real = time.perf_counter(), getattr(data, split)
        weights, order = (
            generator(seed, "evaluate", index, what) for what in ("weights", "training")
        )
        network = network_for(data, *kind, generator=weights, **choices)
        how = {"generator": order, "normalize": normalize, "progress": progress}
        loss = train_network(images, labels, network, config, **how)
        percent = accuracy(network, real.images, real.labels, normalize=data.normalize)
        row = {"network_index": index, "seed": seed, "split": split, "accuracy": percent}
        return row | {"train_loss": loss, "seconds": time.perf_counter() - started}

    networks = range(config.networks)
    epochs = len(ranks.share(networks)) * passes(config)
    with Progress(epochs, f"evaluate on {split}") as progress:
        return ranks.spread(row, networks)


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What several networks say together of one set.

    Returns:
        Mean accuracy in percent, std (of a sample, n - 1), n, and ci95, the half-width of the 95 %
        interval for the mean: Student's t times std / sqrt(n). Over n networks of one distillation
        seed, it says nothing of the spread between distillations. Both are NaN for one network.
    """
    if not rows:
        raise ValueError("no rows to summarize; evaluate at least one network")
    values = torch.tensor([float(row["accuracy"]) for row in rows], dtype=torch.float64)
    n, mean, std, ci95 = len(values), values.mean().item(), math.nan, math.nan
    if n > 1:
        std = values.std(correction=1).item()
        ci95 = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return dict(zip(SUMMARY, (mean, std, n, ci95), strict=True))


def format_accuracy(summary: Mapping[str, float]) -> str:
    """Mean ± half-width of the 95 % interval, in percent, and the number of networks."""
    mean, ci95, n = summary["mean"], summary["ci95"], summary["n"]
    return f"{mean:.1f}" + ("" if math.isnan(ci95) else f" ± {ci95:.1f}") + f" (n={n:.0f})"


def _choices(config: EvalConfig) -> dict[str, str]:
    """The settings of a ConvNet that are not the defaults; the other networks have none."""
    values = {name: getattr(config, f"eval_{name}") for name in ("norm", "pooling", "activation")}
    default = EvalConfig()
    return {n: value for n, value in values.items() if value != getattr(default, f"eval_{n}")}


def _fault(images: Tensor, labels: Tensor, data: ImageData, split: str) -> str | None:
    """What is wrong with the arguments of :func:`evaluate`, in a sentence."""
    if split not in ("validation", "test"):
        return f"unknown split '{split}'; choose 'validation' or 'test'"
    count, classes, expected = len(images), data.num_classes, [data.channels, *data.resolution]
    if images.dim() != 4 or list(images.shape[1:]) != expected or not count:
        return (
            f"images to evaluate must be [N, {str(expected)[1:]} to be tested on '{data.name}', "
            f"got {list(images.shape)}; render them at its resolution"
        )
    if images.is_floating_point() and not images.isfinite().all():
        return "the images to evaluate have non-finite pixels; repair them first"
    soft = labels.shape == (count, classes) and labels.is_floating_point()
    hard = labels.shape == (count,) and not labels.is_floating_point()
    low, high = (int(labels.min()), int(labels.max())) if hard else (0, 0)
    if not (soft or hard) or not 0 <= low <= high < classes:
        return (
            f"labels must be integers [{count}] in 0 to {classes - 1}, numbered as '{data.name}' "
            f"does, or probabilities [{count}, {classes}], got {labels.dtype} {list(labels.shape)}"
            + f" in {low} to {high}"
            * hard
        )
    counts = torch.bincount(labels, minlength=classes) if hard else labels.sum(0)
    if not counts.all():
        name = data.class_names[int((counts == 0).nonzero()[0])]
        return (
            f"no image to train on is of class '{name}', so no network could ever name it; give "
            "every class at least one"
        )
    return None
