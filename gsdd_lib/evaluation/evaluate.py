"""How good is a distilled set? Train fresh networks on nothing else and test them on real ones.

``test`` is read only when asked for by name. A CPU trains one network after another, where vmap is
slower; a GPU, which one small network does not fill, several side by side.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.graph import run_together
from gsdd_lib.core.progress import Progress
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.networks import network_for
from gsdd_lib.training.train import EvaluationError, accuracy, passes, training

TOGETHER = 8  # networks that a GPU trains side by side
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
    """Train ``config.networks`` networks on a set of images and test each; ranks share them.

    Network i has generators of its own: its row is the same whatever was evaluated before it.

    Args:
        images: [N, C, H, W], normalized; or real ones as uint8, normalized batch by batch.
        labels: int64 [N], or probabilities [N, num_classes].
        split: ``validation`` or ``test``; the other one is not read.

    Returns:
        Rows of network_index, seed, split, accuracy (percent), train_loss (last epoch), seconds
        (of networks trained side by side, the mean).

    Raises:
        EvaluationError: the images or labels do not fit, or the training diverges.
    """
    if fault := _fault(images, labels, data, split):
        raise EvaluationError(fault)
    images, labels = images.detach().to(data.device), labels.detach().to(data.device)
    normalize = data.normalize if images.dtype == torch.uint8 else None
    kind, default = (config.eval_network, config.eval_width), EvalConfig()
    values = {name: getattr(config, f"eval_{name}") for name in ("norm", "pooling", "activation")}
    choices = {n: value for n, value in values.items() if value != getattr(default, f"eval_{n}")}

    def row(index: int) -> Iterator[Row]:
        real, made = getattr(data, split), ("weights", "training")
        weights, order = (generator(seed, "evaluate", index, what) for what in made)
        network = network_for(data, *kind, generator=weights, **choices)  # only ConvNets have them
        for loss in training(images, labels, network, config, generator=order, normalize=normalize):
            progress.update(loss=loss)
            yield
        percent = accuracy(network, real.images, real.labels, normalize=data.normalize)
        row = {"network_index": index, "seed": seed, "split": split, "accuracy": percent}
        return row | {"train_loss": loss}

    def rows(indices: Sequence[int]) -> list[Row]:
        started = time.perf_counter()
        found = run_together([row(index) for index in indices], data.device)
        return [own | {"seconds": (time.perf_counter() - started) / len(found)} for own in found]

    networks, together = range(config.networks), TOGETHER if data.device.type == "cuda" else 1
    epochs = len(ranks.share(networks)) * passes(config)
    with Progress(epochs, f"evaluate on {split}") as progress:
        return ranks.spread_groups(rows, networks, together)


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What several networks say together of one set: mean (percent), std, n, ci95.

    ci95 is the half-width of the 95 % interval for the mean, Student's t times std / sqrt(n): over
    networks, not over distillations. It and std (of a sample, n - 1) are NaN for one network.
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


def _fault(images: Tensor, labels: Tensor, data: ImageData, split: str) -> str | None:
    if split not in ("validation", "test"):
        return f"unknown split '{split}'; choose 'validation' or 'test'"
    count, classes, expected = len(images), data.num_classes, [data.channels, *data.resolution]
    if images.dim() != 4 or list(images.shape[1:]) != expected or not count:
        fault = f"images to evaluate must be [N, {str(expected)[1:]} to be tested on '{data.name}'"
        return f"{fault}, got {list(images.shape)}; render them at its resolution"
    if images.is_floating_point() and not images.isfinite().all():
        return "the images to evaluate have non-finite pixels; repair them first"
    soft = labels.shape == (count, classes) and labels.is_floating_point()
    hard = labels.shape == (count,) and not labels.is_floating_point()
    low, high = (int(labels.min()), int(labels.max())) if hard else (0, 0)
    if not (soft or hard) or not 0 <= low <= high < classes:
        wanted = f"integers [{count}] in 0 to {classes - 1}, numbered as '{data.name}' does"
        found = f"{labels.dtype} {list(labels.shape)}" + f" in {low} to {high}" * hard
        return f"labels must be {wanted}, or probabilities [{count}, {classes}], got {found}"
    counts = torch.bincount(labels, minlength=classes) if hard else labels.sum(0)
    if not counts.all():
        name = data.class_names[int((counts == 0).nonzero()[0])]
        fault = f"no image to train on is of class '{name}', so no network could ever name it"
        return f"{fault}; give every class at least one"
    return None
