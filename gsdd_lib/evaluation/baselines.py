"""Sets at the same bits, judged alike: distilled ones, what they started from, real images.

A distilled set means something beside its rivals only: the same parameters before distillation,
and random real images stored as bytes. All are judged on the test split by networks from the same
seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import keep_per_class
from gsdd_lib.evaluation.evaluate import evaluate, format_accuracy, summarize
from gsdd_lib.parameterizations.budget import Budget

INITIAL = "initial"  # the parameters before distillation
RANDOM_REAL = "random real"  # real images as uint8 pixels, at the same bits

Row = dict[str, Any]


def judge(
    sets: Mapping[str, tuple[Tensor, Tensor]],
    data: ImageData,
    config: EvalConfig | Mapping[str, EvalConfig],
    *,
    seed: int,
) -> list[Row]:
    """The rows of ``evaluate`` on the test split for every set, with its name as ``method``.

    Args:
        sets: by name, normalized images [N, C, H, W] and labels as ``evaluate`` takes them.
        config: how networks are trained; or one for each name, where one of them has a learning
            rate of its own.

    Prints a line per set as it is done.
    """
    rows = []
    for name, (images, labels) in sets.items():
        own = config if isinstance(config, EvalConfig) else config[name]
        own_rows = evaluate(images, labels, data, own, seed=seed, split="test")
        print(f"{name}: {format_accuracy(summarize(own_rows))}", flush=True)
        rows += [{"method": name, **row} for row in own_rows]
    return rows


def random_real_images(data: ImageData, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """The honest rival: ``count`` random training images per class, normalized, and their labels.

    What ``count`` the same bits buy as uint8 pixels says ``Budget.uint8_images_per_class``.
    """
    draw = generator(seed, "evaluate", "random real")
    chosen = data.train.select(keep_per_class(data.train.labels, count, generator=draw))
    return data.normalize(chosen.images), chosen.labels


def random_real_rows(data: ImageData, count: int, config: EvalConfig, *, seed: int) -> list[Row]:
    """``count`` random training images per class, drawn anew for each of ``config.networks``.

    Their spread is that of the draws and of the networks together.
    """
    one, rows = config.model_copy(update={"networks": 1}), []
    for draw in range(config.networks):
        images, labels = random_real_images(data, count, seed=seed + draw)
        row = evaluate(images, labels, data, one, seed=seed + draw, split="test")[0]
        rows.append({"method": RANDOM_REAL, **row, "network_index": draw})
    print(f"{RANDOM_REAL}: {format_accuracy(summarize(rows))}", flush=True)
    return rows


def equal_steps(config: EvalConfig, images: int, rival: int) -> EvalConfig:
    """``config`` for a set of ``rival`` images with the SGD steps that ``images`` get in it.

    In the field's 1,000 epochs every set is learned to the end; in a few epochs a smaller set,
    which has fewer steps in each, would stand below what it is worth.

    >>> equal_steps(EvalConfig(epochs=30, eval_batch=64), 1000, 400).epochs
    69
    """
    steps = config.epochs * math.ceil(images / config.eval_batch)
    epochs = math.ceil(steps / math.ceil(rival / config.eval_batch))
    return config.model_copy(update={"epochs": epochs})


def summary_table(rows: Sequence[Row]) -> pd.DataFrame:
    """A line per method in the order of ``rows``: method, mean, std, n, ci95 (percent).

    >>> rows = [{"method": "a", "accuracy": 70.0}, {"method": "a", "accuracy": 72.0}]
    >>> summary_table(rows)["mean"].tolist()
    [71.0]
    """
    methods = dict.fromkeys(row["method"] for row in rows)
    return pd.DataFrame(
        {"method": method, **summarize([row for row in rows if row["method"] == method])}
        for method in methods
    )


def gain_table(rows: Sequence[Row], *, over: str = INITIAL) -> pd.DataFrame:
    """By how much every other method is above ``over``: method, gain, std, n, ci95 (points).

    Taken network by network, as the networks of one ``network_index`` begin with the same weights:
    the interval is that of the mean difference. Methods whose networks are not those of ``over``
    (other seeds, another number of them) are left out.

    >>> rows = [{"method": m, "network_index": i, "seed": 1, "accuracy": a}
    ...         for m, i, a in [("initial", 0, 70.0), ("initial", 1, 72.0),
    ...                         ("ours", 0, 75.0), ("ours", 1, 77.0)]]
    >>> gain_table(rows)[["method", "gain", "ci95"]].values.tolist()
    [['ours', 5.0, 0.0]]
    """
    accuracies = {method: {} for method in dict.fromkeys(row["method"] for row in rows)}
    for row in rows:
        accuracies[row["method"]][row["network_index"], row["seed"]] = row["accuracy"]
    base, lines = accuracies.pop(over), []
    for method, found in accuracies.items():
        if found.keys() == base.keys():
            gains = summarize([{"accuracy": found[key] - base[key]} for key in base])
            lines.append({"method": method, "gain": gains.pop("mean"), **gains})
    return pd.DataFrame(lines, columns=["method", "gain", "std", "n", "ci95"])


def cost_table(
    file_bytes: Mapping[str, int], budget: Budget, *, initial: str = INITIAL
) -> pd.DataFrame:
    """What every rival costs: images and Gaussians per class, bits per class, bytes of its file.

    file_bytes: of each distilled set, by its name. ``initial`` has as many numbers as they, and
        random real images have no file here.
    """
    columns = ["method", "images_per_class", "points", "bits_per_class", "file_bytes"]
    own = (budget.gpc, budget.points, budget.bits_per_class)
    lines = [(name, *own, size) for name, size in file_bytes.items()]
    real = budget.uint8_images_per_class
    real_bits = real * budget.channels * budget.height * budget.width * 8
    lines += [(initial, *own, None), (RANDOM_REAL, real, None, real_bits, None)]
    whole = {"points": "Int64", "file_bytes": "Int64"}
    return pd.DataFrame(lines, columns=columns).astype(whole)
