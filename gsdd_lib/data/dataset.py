"""A data set in memory: a reader's :class:`RawData`, and the :class:`ImageData` made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Generator, Tensor

from gsdd_lib.core.errors import DataError
from gsdd_lib.core.files import checksum
from gsdd_lib.core.rng import generator
from gsdd_lib.data.normalization import ChannelNormalization, Normalization

MAX_BYTES = 32 * 2**30  # a resolution mistyped by a digit should be an error, not a full memory
SPLITS = ("train", "validation", "test")
TEST_FRACTION = 0.2  # where the images come without a test split


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split: images uint8 [N, C, H, W], labels int64 [N] in [0, number of classes)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor | Sequence[int] | slice) -> Self:
        """The images at ``index`` (integers, a mask, or a slice), in its order."""
        return ImageSet(self.images[index], self.labels[index])

    def to(self, device: str | torch.device) -> Self:
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class RawData:
    """What a reader returns; ``provenance`` names no path of a user's folder."""

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # of the training pixels in [0, 1], per channel
    std: tuple[float, ...]
    train: ImageSet
    test: ImageSet
    provenance: str


@dataclass(frozen=True, eq=False)
class ImageData(RawData):
    """A data set ready for use, with images to train on in every class, to validate and to test."""

    validation: ImageSet
    normalization: Normalization | None = None  # what networks see; None: by mean and std

    def __post_init__(self) -> None:
        faults = ["a single class; classification needs at least two"] * (self.num_classes < 2)
        empty = [split for split in SPLITS if not len(getattr(self, split))]
        faults += [f"no {split} images; each split needs some" for split in empty]
        missing = set(range(self.num_classes)) - set(self.train.labels.unique().tolist())
        names = [self.class_names[label] for label in sorted(missing)]
        faults += [f"no training images of class '{name}'; add some" for name in names]
        if faults:
            raise DataError(f"'{self.name}' has {faults[0]}")
        if self.normalization is None:
            default = ChannelNormalization(tuple(self.mean), tuple(self.std))
            object.__setattr__(self, "normalization", default.to(self.device))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return tuple(self.train.images.shape[2:])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels, split and normalization, by which checkpoints know them."""
        about = {"normalization": self.normalization.fingerprint, "classes": self.class_names}
        parts = [(split, part) for split in SPLITS for part in ("images", "labels")]
        tensors = {f"{split} {part}": getattr(getattr(self, split), part) for split, part in parts}
        return checksum(tensors, about)

    @property
    def device(self) -> torch.device:
        """Where the images are; all that is computed with them happens there."""
        return self.train.images.device

    def normalize(self, images: Tensor) -> Tensor:
        """What networks see of images [..., C, H, W], uint8, or floating point in [0, 1]."""
        return self.normalization.apply(images)

    def unit(self, normalized: Tensor) -> Tensor:
        """Undo :meth:`normalize`: [..., C, H, W] back to [0, 1], not clamped."""
        return self.normalization.invert(normalized)

    def to(self, device: str | torch.device) -> Self:
        """The same data set on another device."""
        parts = (*SPLITS, "normalization")
        return replace(self, **{name: getattr(self, name).to(device) for name in parts})


def prepare(
    raw: RawData, *, resolution: int = 0, max_per_class: int = 0, holdout: float = 0.1, seed: int
) -> ImageData:
    """Hold out a validation split, thin the training images, resize all (see ``DataConfig``)."""
    if not 0 < holdout < 1:
        raise DataError(f"holdout must be greater than 0 and less than 1, got {holdout:g}")
    counts = torch.bincount(raw.train.labels, minlength=len(raw.class_names))
    if counts.min() < 2:
        rarest = int(counts.argmin())
        few = f"class {rarest} ('{raw.class_names[rarest]}') has {counts[rarest]} training images"
        hint = "number the classes without gaps or add images"
        raise DataError(f"{few} but needs at least 2, one to hold out; {hint}")
    rng = generator(seed, "data", "holdout")
    kept, held = stratified_split(raw.train.labels, holdout, rng)
    if max_per_class:
        rng = generator(seed, "data", "max_per_class")
        kept = kept[keep_per_class(raw.train.labels[kept], max_per_class, generator=rng)]
    parts = {"train": raw.train.select(kept), "validation": raw.train.select(held)}
    parts["test"], count = raw.test, len(kept) + len(held) + len(raw.test)
    check_size(raw.name, count, channels=raw.test.images.shape[1], resolution=resolution)
    sized = {n: ImageSet(resize(part.images, resolution), part.labels) for n, part in parts.items()}
    provenance = f"{raw.provenance}, {100 * holdout:g}% of each class held out for validation"
    return ImageData(**{**vars(raw), **sized, "provenance": provenance})


def check_size(name: str, count: int, *, channels: int, resolution: int) -> None:
    """Raise :class:`DataError` when ``count`` uint8 images would not fit a sensible memory."""
    needed = count * channels * resolution**2
    if needed > MAX_BYTES:
        takes = f"'{name}' at resolution {resolution} needs {needed / 2**30:,.0f} GiB for {count:,}"
        raise DataError(f"{takes} images; choose a smaller resolution or a smaller max_per_class")


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 [N, C, H, W] to [N, C, resolution, resolution] (0: as it is), anti-aliased."""
    size = (resolution, resolution)
    if not resolution or tuple(images.shape[2:]) == size:
        return images
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def split_test(whole: ImageSet, name: str) -> tuple[ImageSet, ImageSet]:
    """Training and test images of a data set without a test split; the same for any seed."""
    rng = generator(0, "data", name, "test")
    kept, held = stratified_split(whole.labels, TEST_FRACTION, rng)
    return whole.select(kept), whole.select(held)


def stratified_split(labels: Tensor, fraction: float, generator: Generator) -> tuple[Tensor, ...]:
    """Ascending indices (kept, held) with the same share of each class held, never 0 or all."""
    kept, held = [], []
    for members in _shuffled_classes(labels, generator):
        share = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(members[:share])
        kept.append(members[share:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


def keep_per_class(labels: Tensor, count: int, *, generator: Generator) -> Tensor:
    """Ascending indices of ``count`` random images of each class; a larger ``count`` adds some."""
    chosen = [members[:count] for members in _shuffled_classes(labels, generator)]
    return torch.cat(chosen).sort().values


def class_members(labels: Tensor) -> list[Tensor]:
    """For each class that occurs, in order, the ascending indices of its images, on the CPU."""
    labels = labels.cpu()
    order = torch.from_numpy(labels.numpy().argsort(kind="stable"))  # numpy's is a radix sort
    counts = torch.bincount(labels)
    return list(order.split(counts[counts > 0].tolist()))


def sample_per_class(members: list[Tensor], count: int, *, generator: Generator) -> Tensor:
    """``count`` random indices out of each of ``members``, all where there are fewer, by class."""
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:count]] for m in members])


def _shuffled_classes(labels: Tensor, generator: Generator) -> list[Tensor]:
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=generator)
    return [shuffled[members] for members in class_members(labels[shuffled])]
