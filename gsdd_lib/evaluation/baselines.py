"""Rivals of a distilled set at equal storage, and the whole data set, evaluated alike.

All by networks that begin with the same weights, so that methods are compared network by network.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gsdd_lib.config import EvalConfig
from gsdd_lib.core import ranks
from gsdd_lib.core.rng import generator
from gsdd_lib.data import ImageData
from gsdd_lib.data.dataset import class_members, keep_per_class
from gsdd_lib.evaluation.evaluate import Row, evaluate, format_accuracy, summarize
from gsdd_lib.parameterizations.budget import Budget
from gsdd_lib.parameterizations.initialization import representatives
from gsdd_lib.parameterizations.pixel import DownsampledImages, Storage, affordable_images

INITIAL = "initial"  # the parameters before distillation
RANDOM_REAL = "random real"  # real images as uint8 pixels
WHOLE_DATA = "whole data"  # every training image: what a distilled set is to come close to


@dataclass(frozen=True)
class RealImages:
    """Real training images as a rival: which ones of each class, and how they are stored."""

    coreset: bool = False  # those nearest to the k-means centers of their class, or random ones
    storage: Storage = "uint8"  # of a pixel value
    factor: int = 1  # how many times smaller each side is stored

    def per_class(self, budget: Budget) -> int:
        """Images of each class that ``budget`` buys."""
        return affordable_images(budget, factor=self.factor, storage=self.storage)

    @torch.no_grad()
    def choose(self, data: ImageData, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """At most ``count`` images of each class, normalized [N, C, H, W], and their labels."""
        real = data.train
        if self.coreset:
            classes = class_members(real.labels)
            for label, own in enumerate(classes):
                if len(own) > count:
                    classes[label] = own[representatives(real.images[own], count, seed=seed)]
            index = torch.cat(classes)
        else:
            order = generator(seed, "evaluate", "random real")
            index = keep_per_class(real.labels, count, generator=order)
        pixels, labels = real.images[index].float() / 255, real.labels[index]
        more = {"factor": self.factor, "storage": self.storage, "normalization": data.normalization}
        return DownsampledImages.init_from(pixels, labels, **more).render(), labels


REAL = {
    RANDOM_REAL: RealImages(),
    "random real, 4 bits": RealImages(storage="uint4"),
    "random real, half size, 4 bits": RealImages(storage="uint4", factor=2),
    "k-means coreset": RealImages(coreset=True),
}


def set_rows(
    sets: Mapping[str, tuple[Tensor, Tensor]],
    data: ImageData,
    config: EvalConfig | Mapping[str, EvalConfig],
    *,
    seed: int,
    split: str = "test",
) -> list[Row]:
    """The rows of ``evaluate`` for every set, its name as ``method``; prints a line for each."""
    rows = []
    for name, (images, labels) in sets.items():
        own = config if isinstance(config, EvalConfig) else config[name]
        rows += _named(name, evaluate(images, labels, data, own, seed=seed, split=split))
    return rows


def real_rows(
    method: str, data: ImageData, budget: Budget, config: EvalConfig, *, seed: int
) -> list[Row]:
    """Real images at the storage of ``budget`` (a key of :data:`REAL`), a choice per network."""
    rival, one = REAL[method], config.model_copy(update={"networks": 1})

    def row(index: int) -> Row:
        images, labels = rival.choose(data, rival.per_class(budget), seed=seed + index)
        (row,) = evaluate(images, labels, data, one, seed=seed + index, split="test")
        return row | {"network_index": index}

    return _named(method, ranks.spread(row, range(config.networks)))


def whole_data_rows(
    data: ImageData, config: EvalConfig, *, seed: int, steps: int = 2_000
) -> list[Row]:
    """Networks trained on all of ``data.train`` for at least ``steps`` steps, whole epochs."""
    epochs = math.ceil(steps / math.ceil(len(data.train) / config.eval_batch))
    own = config.model_copy(update={"epochs": epochs})
    return set_rows({WHOLE_DATA: (data.train.images, data.train.labels)}, data, own, seed=seed)


def equal_steps(config: EvalConfig, images: int, rival: int) -> EvalConfig:
    """``config`` for a set of ``rival`` images with the SGD steps that ``images`` get in it."""
    # In a few epochs a smaller set, which has fewer steps in each, would seem worse than it is
    steps = config.epochs * math.ceil(images / config.eval_batch)
    epochs = math.ceil(steps / math.ceil(rival / config.eval_batch))
    return config.model_copy(update={"epochs": epochs})


def summary_table(rows: Sequence[Row]) -> pd.DataFrame:
    """A line per method in the order of ``rows``: method, mean, std, n, ci95 (percent)."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return pd.DataFrame(
        {"method": method, **summarize([row for row in rows if row["method"] == method])}
        for method in methods
    )


def paired(rows: Sequence[Row], method: str, over: str) -> dict[str, str | float]:
    """By how much ``method`` is above ``over``, network by network of the same initial weights.

    Returns:
        method, over, gain (percentage points), and std, n and ci95 of the differences; ValueError
        where the two were not evaluated by the same networks.
    """
    first, second = (
        {(r["network_index"], r["seed"]): r["accuracy"] for r in rows if r["method"] == name}
        for name in (method, over)
    )
    if not first or first.keys() != second.keys():
        raise ValueError(f"'{method}' and '{over}' were not evaluated by the same networks")
    gains = summarize([{"accuracy": first[key] - second[key]} for key in first])
    return {"method": method, "over": over, "gain": gains.pop("mean"), **gains}


def verdict(gain: float, ci95: float) -> str:
    """Whether a gain is "above" or "below" 0, or "undecided": within its interval, or without."""
    return "undecided" if not abs(gain) > ci95 else "above" if gain > 0 else "below"


def finding(pair: Any) -> str:
    """What a row of :func:`paired`, as an object, says: one sentence."""
    found = verdict(pair.gain, pair.ci95).replace("undecided", "undecided against")
    return f"`{pair.method}` is {found} `{pair.over}`: {pair.gain:+.1f} ± {pair.ci95:.1f} points."


def _named(method: str, rows: Sequence[Row]) -> list[Row]:
    print(f"{method}: {format_accuracy(summarize(rows))}", flush=True)
    return [{"method": method, **row} for row in rows]
