"""Drawing images class by class: every class gives the same share, or the same number."""

import numpy as np
import torch
from torch import Generator, Tensor


def stratified_split(
    labels: Tensor, fraction: float, *, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Indices (kept, held): of each class ``fraction``, rounded, is held, but never none or all.

    labels: int64 [N]; a class needs two images to be split, a single one is kept
    Returns two int64 index tensors, ascending, together every index once.
    """
    kept, held = [], []
    for members in _shuffled_classes(labels, generator):
        count = len(members)
        share = min(max(round(count * fraction), 1), count - 1)
        held.append(members[:share])
        kept.append(members[share:])
    return _ascending(kept), _ascending(held)


def keep_per_class(labels: Tensor, count: int, *, generator: Generator) -> Tensor:
    """Ascending indices of ``count`` random images of each class, all where there are fewer.

    With the same seed a smaller ``count`` gives a subset of what a larger one gives.
    """
    return _ascending([members[:count] for members in _shuffled_classes(labels, generator)])


def class_members(labels: Tensor) -> list[Tensor]:
    """For each class that occurs, in their order, the ascending indices of its images.

    labels: int64 [N], on any device; the indices are on the CPU, where they are drawn from
    """
    labels = labels.cpu()
    order = torch.from_numpy(labels.numpy().argsort(kind="stable"))
    counts = torch.bincount(labels)
    return list(order.split(counts[counts > 0].tolist()))


def draw_per_class(members: list[Tensor], count: int, *, generator: Generator) -> Tensor:
    """``count`` random indices out of each of ``members``, without repetition, class by class.

    A class with fewer images gives all of them.
    """
    drawn = [part[torch.randperm(len(part), generator=generator)[:count]] for part in members]
    return torch.cat(drawn)


def _shuffled_classes(labels: Tensor, generator: Generator) -> list[Tensor]:
    """For each class that occurs, the indices of its images in random order."""
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator).numpy()
    by_class = labels.numpy()[shuffled].argsort(kind="stable")  # numpy's is a radix sort, fast
    counts = torch.bincount(labels)
    return list(torch.from_numpy(shuffled[by_class]).split(counts[counts > 0].tolist()))


def _ascending(parts: list[Tensor]) -> Tensor:
    return torch.from_numpy(np.sort(torch.cat(parts).numpy()))
