"""How good is a distilled set? Train fresh networks on it alone and test them on real images.

The ``validation`` split serves every choice; ``test`` is read only when it is asked for by name.
How a network is trained is in :mod:`gsdd_lib.training.train`.

The networks are trained one after another: all five in one ``torch.func.vmap`` pass, whose
convolutions become grouped ones, are slower on a CPU. ConvNetD3 at width 64 on 28x28, two shared
cores, forward, backward and step of five: loop 0.07 s, vmap 0.19 s for 10 images; 0.85 s and 1.36 s
for 100.
"""

import math
import time
from collections.abc import Sequence

import torch
from scipy import stats
from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.networks import network_for
from gsdd_lib.training.train import accuracy, train_network

SUMMARY = ("mean", "std", "n", "ci95")  # what :func:`summarize` gives


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
    images, labels = images.detach().to(data.device), labels.detach().to(data.device)
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
    return dict(zip(SUMMARY, (values.mean().item(), std, n, ci95), strict=True))


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

    weights = generator(seed, "evaluate", index, "weights")
    choices = _choices(config)
    network = network_for(
        data, config.eval_network, config.eval_width, generator=weights, **choices
    )
    draws = generator(seed, "evaluate", index, "training")
    train_network(images, labels, network, config, generator=draws, progress=after_epoch)
    real = getattr(data, split)
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
